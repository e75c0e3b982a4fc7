"""Networks kept in small files: which encoder, its weights, and what a reader has to know to use it.

A file is a safetensors file, numbers and a text in JSON, so nothing in it can run: reading rebuilds the encoder from its recipe. Weights of
convolutions and linear layers are stored in half precision, which moves outputs by about a thousandth of the largest; the rest is exact.
"""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import fastjsonschema
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from sslcourse.devices import choose_device
from sslcourse.errors import CourseError
from sslcourse.files import differences, out_of_memory, plain, reason, write_atomically
from sslcourse.models.encoders import encoder_from_recipe
from sslcourse.models.methods import Classifier

NETWORKS_FOLDER = "networks"  # beside the result records
THIS_RUN, SHIPPED = "this run", "shipped"  # where a network comes from
ENDING = ".safetensors"
DESCRIPTION = "sslcourse network"  # the file's one entry of metadata
REFERENCE = Path(__file__).parents[1] / "results" / "reference"
REFERENCE_NETWORKS, ENCODERS = REFERENCE / NETWORKS_FOLDER, REFERENCE / "encoders"  # of lessons on toybox; of long runs on photographs

_ABOUT = {
    "type": "object", "required": ["method", "dataset", "size"],
    "properties": {
        **dict.fromkeys(("method", "dataset", "tier"), {"type": "string", "pattern": r"\S"}),
        **dict.fromkeys(("seed", "labels"), {"type": ["integer", "null"], "minimum": 0}), "size": {"type": "integer", "minimum": 1},
        "lesson": {"type": ["integer", "null"], "minimum": 1}, "block": {"type": ["integer", "null"]},
        "class_names": {"type": ["array", "null"], "items": {"type": "string"}},
    },
}


@dataclass
class Network:
    """A network that was kept, in evaluation mode: an encoder or a `models.Classifier`, what `save_network` was told of it, its origin.

    size: pixels a side at which it is to be evaluated; labels: how many labelled images it was trained on, None without any;
    block: the one whose features are to be probed, None for the encoder's own output.
    """

    model: nn.Module
    about: dict = field(default_factory=dict)
    origin: str = THIS_RUN

    is_classifier = property(lambda self: isinstance(self.model, Classifier))
    encoder = property(lambda self: self.model.encoder if self.is_classifier else self.model)
    method = property(lambda self: self.about["method"])
    dataset = property(lambda self: self.about["dataset"])
    size = property(lambda self: self.about["size"])
    labels = property(lambda self: self.about.get("labels"))
    block = property(lambda self: self.about.get("block"))


def save_network(path: str | os.PathLike, model: nn.Module, **about) -> Path:
    """Keep an encoder of `models`, or a `models.Classifier` over one, in a file; atomically, and the folder is made if need be.

    about: method, dataset and size are required; seed, labels, block (see `Network`), lesson, tier and class_names are checked where given;
    anything else that is plain (numbers, text, lists of them) is kept beside, and the identity of the images that `training` trained it on.
    Raises ValueError for another model, weights that are not finite and values that are not plain; CourseError when it cannot be written,
    or would be written over the network of another experiment.
    """
    encoder, head = model, None
    if isinstance(model, Classifier):
        encoder, head = model.encoder, {"classes": model.head.out_features, "dropout": model.dropout.p}
    if not (recipe := getattr(encoder, "recipe", None)):
        raise ValueError(f"Only the encoders of `models` and classifiers over them can be kept: this is a {type(encoder).__name__}.")
    about = {name: list(value) if isinstance(value, tuple) else plain(value) for name, value in about.items()}
    about = getattr(encoder, "trained_on", {}) | about
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    _checked(recipe, head, about, weights)
    description = json.dumps({"recipe": recipe, "head": head, "about": about})
    if os.path.exists(path) and (found := differences(_experiment(load_network(path)), _experiment(Network(model, about)))):
        raise CourseError(f"{path} is the network of another experiment, and was not written over: {found}. Move it away first.")
    return write_atomically(path, as_safetensors({name: _small(value) for name, value in weights.items()}, {DESCRIPTION: description}))


def _experiment(network: Network) -> dict:
    about = {name: value for name, value in network.about.items() if name not in ("minutes", "block")}  # both were found on the way
    return {**about, "encoder": network.encoder.recipe, "classifier": network.is_classifier}


def _small(value: Tensor) -> Tensor:
    """The same numbers in plain order, in half precision where the tensor is large and all of them stay finite."""
    if value.is_floating_point():
        half = value.half()
        value = half if value.dim() > 1 and half.isfinite().all() else value.float()
    return value.contiguous()


def load_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> Network:
    """Read a file of `save_network`: the network on this device, in evaluation mode, with float32 weights.

    path: the file, the folder of a finished run of `pretrain`, or the name of one of the `pretrained_encoders`. torch's random numbers are
    left as they are. Raises CourseError, naming the file, when it is missing, damaged or of another program.
    """
    path = Path(path).expanduser()
    path = path / f"encoder{ENDING}" if path.is_dir() else path
    if not path.exists() and str(path) in pretrained_encoders():
        return replace(load_network(ENCODERS / f"{path}{ENDING}", device), origin=SHIPPED)
    try:
        with open(path, "rb"), safe_open(path, framework="pt") as file:  # open says why it cannot, and safetensors does not
            description = (file.metadata() or {})[DESCRIPTION]
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    except (FileNotFoundError, NotADirectoryError):
        way_out = "Run the lesson that writes it, finish the run (pretrain --resume), or name one that is here:"
        raise CourseError(f"There is no network {path}. {way_out} {', '.join(pretrained_encoders()) or 'none yet'}.") from None
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {reason(error)}.") from error
    except (SafetensorError, KeyError) as error:
        way_out = "Give another file. Delete it, or run the lesson again, if a lesson wrote it."
        raise CourseError(f"{path} cannot be read as a network of this course ({type(error).__name__}). {way_out}") from error
    try:
        found = json.loads(description)
        model = _checked(found["recipe"], found["head"], found["about"], weights)
        model.to_empty(device="cpu").load_state_dict(weights)
        model.eval()
        encoder = model.encoder if found["head"] else model
        encoder.trained_on = {name: found["about"][name] for name in ("identity", "image_size") if name in found["about"]}
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CourseError(f"{path} is damaged ({told}). Delete it, or run the lesson again that wrote it.") from error
    return Network(model.to(choose_device(device)), found["about"])


def _checked(recipe: Mapping, head: Mapping | None, about: Mapping, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network described. Raises ValueError unless these are its weights, finite, and `about` is what has to be said of it."""
    with torch.device("meta"):  # without memory for weights, so that no file can ask for more than it brings
        encoder = model = encoder_from_recipe(recipe)
        if head:
            model = Classifier(encoder, head["classes"], head["dropout"])
    try:
        fastjsonschema.validate(_ABOUT, about)
        json.dumps(about, allow_nan=False)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ValueError(error.message.removeprefix("data.")) from None
    except (TypeError, ValueError, RecursionError):
        raise ValueError("what is said of a network has to be plain: finite numbers, texts, and lists of them") from None
    block, names = about.get("block"), about.get("class_names")
    if block is not None and not 1 <= abs(block) <= len(encoder.blocks):
        raise ValueError(f"block has to be one of its {len(encoder.blocks)} blocks, counted from 1, or None, not {block}")
    if names is not None and head and len(names) != head["classes"]:
        raise ValueError(f"there are {len(names)} class_names for {head['classes']} classes")
    expected = model.state_dict()
    if set(weights) != set(expected):
        raise ValueError("its layers are not those of its recipe")
    for name, value in expected.items():
        given = weights[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            raise ValueError(f"{name} is not {tuple(value.shape)}, as its recipe has it")
        if not given.isfinite().all():
            raise ValueError(f"{name} holds NaN or inf; diagnostics.find_nonfinite tells where they begin")
    return model


def read_networks(folder: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Network]:
    """All networks of a folder, by their file's name without its ending, in that order; an unusable file gives a warning that names it."""
    found = {}
    for path in sorted(Path(folder).glob(f"*{ENDING}")):
        try:
            found[path.stem] = load_network(path, device)
        except CourseError as error:
            warnings.warn(f"Left out: {error}", stacklevel=2)
    return found


def pretrained_encoders() -> list[str]:
    """The names of the encoders that come with the package, pretrained on photographs in long runs; each has a card, NAME.md, beside it."""
    return sorted(path.stem for path in ENCODERS.glob(f"*{ENDING}"))


def reference_networks(device: str | torch.device = "cpu") -> dict[str, Network]:
    """The networks that come with the package, as `read_networks` gives them; their origin is "shipped"."""
    return {name: replace(network, origin=SHIPPED) for name, network in read_networks(REFERENCE_NETWORKS, device).items()}
