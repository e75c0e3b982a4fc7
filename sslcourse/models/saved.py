"""Networks that are kept in small files: which encoder, its weights, and what a reader has to know to use it.

A file holds numbers and plain values, never code: reading one rebuilds the encoder from its recipe (`encoders`), and a file that is not of
this form is refused in a sentence. Weights of convolutions and linear layers are stored in half precision, which halves the file and moves
outputs by about a thousandth of the largest; everything per channel (batch normalisation, biases) is little and keeps its 32 bits.
"""

import inspect
import io
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sslcourse.errors import CourseError
from sslcourse.files import ZIP, plain, slug, write_atomically
from sslcourse.models import encoders
from sslcourse.models.methods import Classifier

KIND = "sslcourse network"
FORMAT = 1
FOLDER = "networks"  # beside the result records
OWN, COMMITTED = "this run", "committed"
MAKERS = {maker.__name__: maker for maker in (encoders.resnet9, encoders.resnet18, encoders.resnet50, encoders.alexnet)}
_REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "networks"


@dataclass
class Network:
    """A network that was kept, in evaluation mode, and what is known of it.

    model: an encoder, or a `models.Classifier`. about: what `save_network` was told. origin: "this run" or "committed".
    Its features: `evaluation.feature_set(network.encoder, images, size=network.size, block=network.block)`; a classifier's answers:
    `evaluation.evaluate(network.model, pictures, labels, size=network.size)`.
    """

    model: nn.Module
    about: dict = field(default_factory=dict)
    origin: str = OWN

    @property
    def is_classifier(self) -> bool:
        return isinstance(self.model, Classifier)

    @property
    def encoder(self) -> nn.Module:
        """The model itself, or the encoder of the classifier."""
        return self.model.encoder if self.is_classifier else self.model

    @property
    def method(self) -> str:
        return self.about["method"]

    @property
    def dataset(self) -> str:
        return self.about["dataset"]

    @property
    def size(self) -> int:
        """Pixels a side of the images at which it is to be evaluated."""
        return self.about["size"]

    @property
    def labels(self) -> int | None:
        """How many labelled images it was trained on; None without any."""
        return self.about.get("labels")

    @property
    def block(self) -> int | None:
        """The block whose features are to be probed; None for the encoder's own output."""
        return self.about.get("block")


# --- writing --------------------------------------------------------------------------------------------------------------------------


def network_file_name(about: Mapping) -> str:
    """'03-simclr-toybox.pt', '01-supervised-toybox-100.pt': lesson, method, data set, and labels where there are some.

    Another tier than cpu and another seed than 0 are added, so that a quick smoke run never replaces a real network.
    """
    if reason := _wrong_with(about):
        raise ValueError(f"A network cannot be named: {reason}.")
    parts = [f"{about['lesson']:02d}"] if about.get("lesson") is not None else []
    parts += [slug(about["method"]), slug(about["dataset"])]
    parts += [str(about["labels"])] if about.get("labels") is not None else []
    parts += [slug(about["tier"])] if about.get("tier", "cpu") != "cpu" else []
    parts += [f"seed{about['seed']}"] if about.get("seed", 0) else []
    return "-".join(parts) + ".pt"


def save_network(path: str | os.PathLike, model: nn.Module, **about) -> Path:
    """Keep a network in a file, atomically; the folder is made if need be.

    model: an encoder made by `models.resnet9`, `resnet18`, `resnet50` or `alexnet`, or a `models.Classifier` over one. It is not changed.
    about: method, dataset and size (pixels a side at which it is to be evaluated) are required; seed, labels (None: pretrained without
    labels), block (the one to probe; None for the encoder's output), lesson, tier and class_names are checked where given; anything else
    that is plain (numbers, text, lists of them) is kept beside, such as minutes.
    Raises ValueError for another model, weights that are not finite and values that are not plain; CourseError when the file cannot be
    written.
    """
    about = {name: list(value) if isinstance(value, tuple) else plain(value) for name, value in about.items()}
    encoder = model.encoder if isinstance(model, Classifier) else model
    recipe = getattr(encoder, "recipe", None)
    if not recipe:
        raise ValueError(
            f"This {type(encoder).__name__} does not say how it was made, so it cannot be made again: keep an encoder of models.resnet9, "
            "resnet18, resnet50 or alexnet, or a models.Classifier over one."
        )
    head = {"classes": model.head.out_features, "dropout": model.dropout.p} if isinstance(model, Classifier) else None
    if reason := _wrong_with(about, len(encoder.blocks), head and head["classes"]):
        raise ValueError(f"The network cannot be kept: {reason}.")
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if reason := _misfit(_empty(recipe, head), weights):
        raise ValueError(f"The network cannot be kept: it was changed after {recipe['name']} had made it ({reason}).")
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise ValueError(f"The network cannot be kept: {broken[0]} holds NaN or inf; diagnostics.find_nonfinite tells where they begin.")
    stored = {name: _small(value) for name, value in weights.items()}
    buffer = io.BytesIO()
    torch.save({"kind": KIND, "format": FORMAT, "recipe": dict(recipe), "head": head, "about": about, "weights": stored}, buffer)
    try:
        return write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise CourseError(f"{path} could not be written ({error.strerror}). Free some disk space or name another folder.") from error


def _small(value: Tensor) -> Tensor:
    """The same numbers in plain order, in half precision where the tensor is large and all of them stay finite."""
    if not value.is_floating_point():
        return value.clone().contiguous()
    half = value.to(torch.float16)
    kept = half if value.dim() > 1 and half.isfinite().all() else value.float()
    return kept.clone(memory_format=torch.contiguous_format)  # a view would take its whole storage along


# --- reading --------------------------------------------------------------------------------------------------------------------------


def load_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> Network:
    """Read a file of `save_network`: the network on this device, in evaluation mode, with float32 weights.

    Nothing in the file is ever executed, and torch's random numbers are left as they are. Raises CourseError, naming the file, when it is
    missing, damaged, of another program or of a newer version.
    """
    path, way_out = Path(path), "Delete it, or run the lesson again that wrote it."
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            if stream.read(len(ZIP)) != ZIP:
                raise ValueError("not a file of torch.save")
        found = torch.load(path, map_location="cpu", weights_only=True)
        known = found["kind"] == KIND
    except FileNotFoundError:
        raise CourseError(f"There is no network {path}. Run the lesson that writes it.") from None
    except Exception as error:  # torch raises many kinds for what is not its file; each means the same to the reader
        raise CourseError(f"{path} cannot be read as a network of this course ({type(error).__name__}). {way_out}") from error
    if not known or not isinstance(found.get("format"), int):
        raise CourseError(f"{path} is not a network of this course. {way_out}")
    if found["format"] != FORMAT:
        raise CourseError(f"{path} was written in network format {found['format']}; this version reads {FORMAT}. {way_out}")
    try:
        return Network(_rebuilt(found, size).to(device), dict(found["about"]))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CourseError(f"{path} is damaged ({reason}). {way_out}") from error


def _rebuilt(found: dict, size: int) -> nn.Module:
    """The network that a file of so many bytes describes. Raises ValueError, or what Python says of a dictionary of another form."""
    recipe, head, weights = found["recipe"], found["head"], found["weights"]
    model = _empty(recipe, head)
    encoder = model.encoder if head else model
    if reason := _wrong_with(found["about"], len(encoder.blocks), head and head["classes"]) or _misfit(model, weights):
        raise ValueError(reason)
    # a tensor may claim many more numbers than it has bytes for, each two at least
    if sum(value.numel() for value in weights.values() if value.dim() > 1) * 2 > size:
        raise ValueError("it holds fewer numbers than it says")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError("a weight is NaN or inf")
    model.load_state_dict(weights, assign=True)
    # `assign` puts plain tensors where parameters were empty; they are to be trained again if somebody likes
    return model.requires_grad_(True).eval()


def _empty(recipe: Mapping, head: Mapping | None) -> nn.Module:
    """The network of a recipe without memory for its weights, so that no file can ask for more than it brings."""
    arguments = dict(recipe)
    maker = MAKERS.get(arguments.pop("name", None))
    if maker is None or set(arguments) != set(inspect.signature(maker).parameters):
        raise ValueError("its recipe is none of this version's encoders")
    if not all(isinstance(value, (bool, int)) for value in arguments.values()):
        raise ValueError("its recipe has an argument that is not a number")
    with torch.device("meta"):
        encoder = maker(**arguments)
        return Classifier(encoder, head["classes"], head["dropout"]) if head else encoder


def _misfit(empty: nn.Module, weights: Mapping) -> str | None:
    """Why these weights are not those of the network, in a few words; None when they are."""
    expected = empty.state_dict()
    if not isinstance(weights, Mapping) or set(weights) != set(expected):
        return "its layers are not those of its recipe"
    for name, value in expected.items():
        given = weights[name]
        if not isinstance(given, Tensor) or given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            return f"{name} is not {tuple(value.shape)}"
    return None


def _wrong_with(about: Mapping, blocks: int | None = None, classes: int | None = None) -> str | None:
    """Why this is not what a network has to say of itself, in a few words; None when it is.

    blocks, classes: how many it has, where known.
    """
    if not isinstance(about, Mapping):
        return "it does not say what it is"
    for name in ("method", "dataset", "tier"):
        if (name in about or name != "tier") and not (isinstance(about.get(name), str) and about[name].strip()):
            return f"{name} has to be a text, not {about.get(name)!r}"
    if not _is_whole(about.get("size")) or about["size"] < 1:
        return f"size has to be a number of pixels, not {about.get('size')!r}"
    for name, least in (("seed", 0), ("labels", 0), ("lesson", 1)):
        value = about.get(name)
        if value is not None and not (_is_whole(value) and value >= least):
            return f"{name} has to be a whole number from {least}, not {value!r}"
    block = about.get("block")
    if block is not None and not (_is_whole(block) and 1 <= abs(block) <= (blocks or math.inf)):
        return f"block has to be one of its {blocks or ''} blocks, counted from 1, or None, not {block!r}".replace("  ", " ")
    names = about.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "class_names has to be a list of texts"
    if names is not None and classes is not None and len(names) != classes:
        return f"there are {len(names)} class_names for {classes} classes"
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "what is said of it has to be plain: finite numbers, texts, and lists of them"
    return None


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- folders --------------------------------------------------------------------------------------------------------------------------


def read_networks(folder: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Network]:
    """All networks of a folder in the order of their file names, by that name without its ending; {} if there is no such folder.

    A file that cannot be used is left out with a warning that names it.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.pt")):
        try:
            found[path.stem] = load_network(path, device)
        except CourseError as error:
            warnings.warn(f"Left out: {error}", stacklevel=2)
    return found


def reference_networks(device: str | torch.device = "cpu") -> dict[str, Network]:
    """The networks that come with the package, as `read_networks` gives them; their origin is "committed"."""
    return {name: replace(network, origin=COMMITTED) for name, network in read_networks(_REFERENCE, device).items()}


def fill_networks(
    own: Mapping[str, Network], committed: Mapping[str, Network], *, dataset: str | None = None, tier: str | None = None
) -> dict[str, Network]:
    """One's own networks, and the committed ones of methods that one has not trained oneself: method -> Network, in the order of lessons.

    own, committed: as from `read_networks` and `reference_networks`. Each is returned as a copy with `.origin` "this run" or "committed".
    Where a method was kept with several numbers of labels, the one with the fewest has the method's name alone, and the others are called
    'supervised, 5000 labels'. Of several seeds the smallest is taken.
    dataset: only networks of this data set. tier: only own networks of this tier; committed ones fill in whatever theirs is.
    """
    chosen = [n for n in own.values() if tier is None or n.about.get("tier") == tier]
    mine = [replace(n, origin=OWN) for n in chosen if dataset in (None, n.dataset)]
    methods = {n.method for n in mine}
    found = mine + [replace(n, origin=COMMITTED) for n in committed.values() if n.method not in methods and dataset in (None, n.dataset)]
    found.sort(key=lambda n: (n.about.get("lesson") or math.inf, n.method, -1 if n.labels is None else n.labels, n.about.get("seed") or 0))
    named: dict[str, Network] = {}
    for network in found:
        name = network.method if network.method not in named else f"{network.method}, {network.labels} labels"
        if network.method not in named or network.labels != named[network.method].labels:
            named.setdefault(name, network)
    return named
