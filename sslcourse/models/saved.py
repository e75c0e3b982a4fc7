"""Networks that are kept in small files: which encoder, its weights, and what a reader has to know to use it.

A file is a safetensors file, numbers and a text in JSON, so nothing in it can run: reading rebuilds the encoder from its recipe. Weights
of convolutions and linear layers are stored in half precision, which halves the file and moves outputs by about a thousandth of the
largest; everything per channel (batch normalisation, biases) is little and keeps its 32 bits.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonschema
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from sslcourse.errors import CourseError
from sslcourse.files import plain, slug, write_atomically
from sslcourse.models.encoders import encoder_from_recipe
from sslcourse.models.methods import Classifier

NETWORKS_FOLDER = "networks"  # beside the result records
THIS_RUN, COMMITTED = "this run", "committed"  # where a network comes from
ENDING = ".safetensors"
DESCRIPTION = "sslcourse network"  # the file's one entry of metadata
REFERENCE_NETWORKS = Path(__file__).parents[1] / "results" / "reference" / NETWORKS_FOLDER

_TEXT = {"type": "string", "pattern": r"\S"}
_ABOUT = {
    "type": "object",
    "required": ["method", "dataset", "size"],
    "properties": {
        "method": _TEXT,
        "dataset": _TEXT,
        "tier": _TEXT,
        "size": {"type": "integer", "minimum": 1},
        "seed": {"type": ["integer", "null"], "minimum": 0},
        "labels": {"type": ["integer", "null"], "minimum": 0},
        "lesson": {"type": ["integer", "null"], "minimum": 1},
        "block": {"type": ["integer", "null"]},
        "class_names": {"type": ["array", "null"], "items": {"type": "string"}},
    },
}


@dataclass
class Network:
    """A network that was kept, in evaluation mode, and what is known of it.

    model: an encoder, or a `models.Classifier`. about: what `save_network` was told. origin: "this run" or "committed".
    Its features: `evaluation.feature_set(network.encoder, images, size=network.size, block=network.block)`; a classifier's answers:
    `evaluation.evaluate(network.model, pictures, labels, size=network.size)`.
    """

    model: nn.Module
    about: dict = field(default_factory=dict)
    origin: str = THIS_RUN

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
    """'03-simclr-toybox.safetensors', '01-supervised-toybox-100.safetensors': lesson, method, data set, and labels where there are some.

    Another tier than cpu and another seed than 0 are added, so that a quick smoke run never replaces a real network.
    Raises ValueError where method, dataset or size is missing, or one of them cannot be.
    """
    _check_about(about)
    parts = [f"{about['lesson']:02d}"] if about.get("lesson") is not None else []
    parts += [slug(about["method"]), slug(about["dataset"])]
    parts += [str(about["labels"])] if about.get("labels") is not None else []
    parts += [slug(about["tier"])] if about.get("tier", "cpu") != "cpu" else []
    parts += [f"seed{about['seed']}"] if about.get("seed", 0) else []
    return "-".join(parts) + ENDING


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
        raise ValueError(f"Only the encoders of `models` and classifiers over them can be kept: this is a {type(encoder).__name__}.")
    head = {"classes": model.head.out_features, "dropout": model.dropout.p} if isinstance(model, Classifier) else None
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    _check_about(about, blocks=len(encoder.blocks), classes=head and head["classes"])
    _check_weights(_without_memory(recipe, head), weights)
    description = json.dumps({"recipe": recipe, "head": head, "about": about})
    content = as_safetensors({name: _small(value) for name, value in weights.items()}, metadata={DESCRIPTION: description})
    try:
        return write_atomically(path, content)
    except OSError as error:
        raise CourseError(f"{path} could not be written ({error.strerror}). Free some disk space or name another folder.") from error


def _small(value: Tensor) -> Tensor:
    """The same numbers in plain order, in half precision where the tensor is large and all of them stay finite."""
    if value.is_floating_point():
        half = value.half()
        value = half if value.dim() > 1 and half.isfinite().all() else value.float()
    return value.contiguous()


# --- reading --------------------------------------------------------------------------------------------------------------------------


def load_network(path: str | os.PathLike, device: str | torch.device = "cpu") -> Network:
    """Read a file of `save_network`: the network on this device, in evaluation mode, with float32 weights.

    Nothing in the file is ever executed, and torch's random numbers are left as they are. Raises CourseError, naming the file, when it is
    missing, damaged or of another program.
    """
    way_out = "Delete it, or run the lesson again that wrote it."
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {})[DESCRIPTION]
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    except FileNotFoundError:
        raise CourseError(f"There is no network {path}. Run the lesson that writes it.") from None
    except (SafetensorError, OSError, KeyError) as error:
        raise CourseError(f"{path} cannot be read as a network of this course ({type(error).__name__}). {way_out}") from error
    try:
        found = json.loads(description)
        return Network(_rebuilt(found["recipe"], found["head"], found["about"], weights).to(device), found["about"])
    except (AttributeError, KeyError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CourseError(f"{path} is damaged ({reason}). {way_out}") from error


def _rebuilt(recipe: Mapping, head: Mapping | None, about: Mapping, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network that a file describes. Raises ValueError, or what Python says of a dictionary of another form."""
    model = _without_memory(recipe, head)
    encoder = model.encoder if head else model
    _check_about(about, blocks=len(encoder.blocks), classes=head and head["classes"])
    _check_weights(model, weights)
    # copies, for what was read are views of the file itself
    weights = {name: weights[name].to(value.dtype, copy=True) for name, value in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    # `assign` puts plain tensors where parameters were empty; they are to be trained again if somebody likes
    return model.requires_grad_(True).eval()


def _without_memory(recipe: Mapping, head: Mapping | None) -> nn.Module:
    """The network of a recipe without memory for its weights, so that no file can ask for more than it brings."""
    with torch.device("meta"):
        encoder = encoder_from_recipe(recipe)
        return Classifier(encoder, head["classes"], head["dropout"]) if head else encoder


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless these are the weights of such a network, and finite."""
    expected = model.state_dict()
    if set(weights) != set(expected):
        raise ValueError("its layers are not those of its recipe")
    for name, value in expected.items():
        given = weights[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            raise ValueError(f"{name} is not {tuple(value.shape)}, as its recipe has it")
        if not given.isfinite().all():
            raise ValueError(f"{name} holds NaN or inf; diagnostics.find_nonfinite tells where they begin")


def _check_about(about: Mapping, blocks: int | None = None, classes: int | None = None) -> None:
    """Raise ValueError unless this is what a network has to say of itself. blocks, classes: how many it has, where known."""
    try:
        jsonschema.validate(about, _ABOUT)
        json.dumps(about, allow_nan=False)
    except jsonschema.ValidationError as error:
        raise ValueError(f"{error.json_path.removeprefix('$.')}: {error.message}") from None
    except (TypeError, ValueError, RecursionError):
        raise ValueError("what is said of a network has to be plain: finite numbers, texts, and lists of them") from None
    if (block := about.get("block")) is not None and blocks and not 1 <= abs(block) <= blocks:
        raise ValueError(f"block has to be one of its {blocks} blocks, counted from 1, or None, not {block}")
    if (names := about.get("class_names")) is not None and classes and len(names) != classes:
        raise ValueError(f"there are {len(names)} class_names for {classes} classes")


# --- folders --------------------------------------------------------------------------------------------------------------------------


def read_networks(folder: str | os.PathLike, device: str | torch.device = "cpu") -> dict[str, Network]:
    """All networks of a folder in the order of their file names, by that name without its ending; {} if there is no such folder.

    A file that cannot be used is left out with a warning that names it.
    """
    found = {}
    for path in sorted(Path(folder).glob(f"*{ENDING}")):
        try:
            found[path.stem] = load_network(path, device)
        except CourseError as error:
            warnings.warn(f"Left out: {error}", stacklevel=2)
    return found


def reference_networks(device: str | torch.device = "cpu") -> dict[str, Network]:
    """The networks that come with the package, as `read_networks` gives them; their origin is "committed"."""
    return {name: replace(network, origin=COMMITTED) for name, network in read_networks(REFERENCE_NETWORKS, device).items()}


def fill_networks(
    own: Mapping[str, Network], committed: Mapping[str, Network], *, dataset: str | None = None, tier: str | None = None
) -> dict[str, Network]:
    """One's own networks, and the committed ones of methods that one has not trained oneself: method -> Network, in the order of lessons.

    own, committed: as from `read_networks` and `reference_networks`. Each is returned as a copy with `.origin` "this run" or "committed".
    Where a method was kept with several numbers of labels, the one with the fewest has the method's name alone, and the others are called
    'supervised, 5000 labels'. Of several seeds the smallest is taken.
    dataset: only networks of this data set. tier: only own networks of this tier; committed ones fill in whatever theirs is.
    """
    mine = [replace(n, origin=THIS_RUN) for n in own.values() if tier in (None, n.about.get("tier")) and dataset in (None, n.dataset)]
    methods = {n.method for n in mine}
    others = [n for n in committed.values() if n.method not in methods and dataset in (None, n.dataset)]
    found = mine + [replace(n, origin=COMMITTED) for n in others]
    found.sort(key=lambda n: (n.about.get("lesson") or math.inf, n.method, -1 if n.labels is None else n.labels, n.about.get("seed") or 0))
    named: dict[str, Network] = {}
    for network in found:
        first = named.setdefault(network.method, network)
        if network.labels != first.labels:
            named.setdefault(f"{network.method}, {network.labels} labels", network)
    return named
