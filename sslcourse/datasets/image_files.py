"""Read one image file into uint8 pixels of one size, and say what was done to it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sslcourse import files
from sslcourse.datasets.archives import Piece

RAW = ".dng .nef .nrw .cr2 .cr3 .crw .arw .orf .rw2 .raf .pef .srw .3fr .iiq .x3f"  # PIL would find the thumbnail inside
CONVERT = (  # pictures that are not read here: endings, marks among the first bytes, what they are and what helps
    (RAW, b"", "camera raw: develop it into JPEG, for instance with darktable"),
    (".heic .heif .hif", b"ftyphei ftyphev ftypmif1 ftypmsf1", "HEIC: convert it to JPEG, as magick mogrify -format jpg *.heic does"),
    (".avif", b"ftypavif ftypavis", "AVIF: convert it to PNG, as magick mogrify -format png *.avif does"),
    (".jxl", b"JXL", "JPEG XL: convert it to PNG, as djxl in.jxl out.png does"),
    (".svg .svgz", b"<svg", "SVG, a drawing without pixels: export it as PNG, from Inkscape for instance"),
    (".pdf .eps .ps .ai .wmf .emf", b"%PDF %!PS", "a page or drawing without pixels: export it as PNG"),
    (".mp4 .mov .avi .mkv .webm", b"ftypmp4 ftypisom ftypqt", "a film: take pictures out of it, as ffmpeg -i film.mp4 %05d.png does"),
    (".tif .tiff", b"II*\0 MM\0*", "a TIFF of a kind that is not read here: convert it to PNG with 8 bits, or 16 bits of grey"),
    (".npy .npz .mat .h5 .dcm .nii .fits .exr .hdr", b"DICM NUMPY", "an array, not a picture: save its values as PNG"),
)
MAX_PIXELS = 120_000_000  # larger than any camera's photo; a small file can claim far more and fill the memory
DONE = {  # what `decode` may do to an image
    "turned": "turned upright, as their EXIF data says", "kept": "kept as they are stored, not turned, because their metadata is broken",
    "opaque": "made opaque on white", "grey": "made RGB by repeating their one channel",
    "colours": "converted to RGB from another colour space", "frame": "reduced to their first frame or page",
    "upper": "reduced from 16 bits a colour to the upper 8", "cut": "cut to the square in their middle", "resized": "resized",
}


def decode(path: str, file: Piece, size: int, scale=None) -> tuple[np.ndarray | None, tuple[float, float], set[str]]:
    """One image file, which was called `path` -> (pixels uint8 (3, size, size), lowest and highest value in it, keys of DONE).

    It becomes RGB (transparent parts white) and upright as its EXIF data says; its short side is resized to `size` (bicubic, antialiased)
    and the centre is cut out. Images with more bits, signs or fractions need a `scale`, the values that become 0 and 255; without it pixels
    are None and the key is "whole" or "floats". Raises what PIL raises; ValueError for over 120 million pixels or values not finite.
    """
    with _opened(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels are too many")
        if image.format in ("EPS", "WMF") or Path(path).suffix.lower() in RAW.split():  # other programs would draw them
            raise Image.UnidentifiedImageError
        deep = image.mode.startswith(("I", "F"))
        done = {"upper"} if ";16" in str(image.tile) and not deep else set()
        done |= {"frame"} if getattr(image, "is_animated", False) and image.format != "MPO" else set()
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size, which saves most of the time
        image.load()
        try:
            done |= {"turned"} if image.getexif().get(0x0112, 1) in range(2, 9) else set()
            done |= {"kept"} if image.info.get("exif") and not image.getexif() else set()
            image = ImageOps.exif_transpose(image)
        except Exception:  # broken metadata makes PIL raise nearly anything
            image, done = image.copy(), (done | {"kept"}) - {"turned"}
    if deep:
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        found = float(values.min()), float(values.max())
        if scale is None:
            return None, found, {"floats" if image.mode == "F" else "whole"}
        values = (values - scale[0]) / (scale[1] - scale[0]) * 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        done |= {"opaque"} if image.getextrema()[3][0] < 255 else set()
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode in ("1", "L"):
        done.add("grey")
    elif image.mode not in ("RGB", "RGBX", "P"):
        done.add("colours")
    image = image.convert("RGB")
    if not deep:
        found = min(low for low, _ in image.getextrema()), max(high for _, high in image.getextrema())
    if image.size != (size, size):
        done |= {"resized"} | ({"cut"} if image.width != image.height else set())
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1), found, done


def _opened(file: Piece) -> Image.Image:
    content = file.open()
    try:
        return Image.open(content)
    except (Image.UnidentifiedImageError, ValueError):
        whole, kept, place = content.getvalue(), [b"\x89PNG\r\n\x1a\n"], 8
        if not whole.startswith(kept[0]):
            raise
        while place < len(whole):  # of a PNG only what the picture needs: a broken text or profile beside it makes PIL give up
            end = place + 12 + int.from_bytes(whole[place : place + 4], "big")
            kept += [whole[place:end]] if whole[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") else []
            place = end
        return Image.open(io.BytesIO(b"".join(kept)))


def common_scale(lowest: float, highest: float, whole: bool) -> tuple[float, float]:
    """The two values that become 0 and 255 in a set whose values lie between these; `whole` if all of them are whole numbers."""
    if lowest >= 0 and whole:
        return 0, 2 ** max(1, int(highest).bit_length()) - 1  # as many bits as the values need
    if lowest >= 0 and highest <= 1:
        return 0, 1
    if lowest >= 0 and 128 <= highest <= 255:
        return 0, 255
    return lowest, max(highest, lowest + 1e-9)


def reason(path: str, file: Piece, error: Exception) -> str:
    """Why an image cannot be read, and what helps."""
    if isinstance(error, OSError) and error.errno:
        return files.reason(error)
    if isinstance(error, Image.UnidentifiedImageError):
        head = file.open().read(512)
        for endings, marks, told in CONVERT:
            if Path(path).suffix.lower() in endings.split() or any(mark in head for mark in marks.split()):
                return told
        return "not an image"
    return str(error) or type(error).__name__
