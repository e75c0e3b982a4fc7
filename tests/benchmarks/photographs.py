"""Prepare an encoder of a long run to come with the package: its file, and facts about its features, numbers without any photograph.

python tests/benchmarks/photographs.py runs/cifar cifar10-simclr --size 32 --frame 0 - --frame 8 runs/cifar/encoder-8.safetensors
"""

import argparse
import json

import torch
from scipy.linalg import orthogonal_procrustes
from torch.nn import functional as F

from sslcourse import datasets, evaluation, models
from sslcourse.course import comparison
from sslcourse.files import write_atomically

ON_THE_MAP = 40  # images of each class
LABELS = 50  # a class, for the probe along pretraining


def facts(network: models.Network, frames: dict[int, models.Network], images) -> dict:
    """t-SNE maps of some test images and a probe on validation images along pretraining; the mean cosine of each two classes at its end.

    Features are of the encoder's output, and the mean over all images is taken from them. Each map is turned to lie as the last one does.
    """
    labels, size = images.test_labels.cpu(), network.size
    some = torch.cat([(labels == c).nonzero()[:ON_THE_MAP, 0] for c in range(images.num_classes)])
    few, last = images.few_labels(LABELS, seed=0).subset(test=0), None
    maps, probe = {}, {}
    for passes, one in sorted((frames | {network.about["epochs"]: network}).items(), reverse=True):
        z = evaluation.features(one.encoder, images.test_images, size=size)
        z = F.normalize(z - z.mean(0), dim=1)
        at = evaluation.tsne(z[some]).double()
        at -= at.mean(0)
        if last is None:
            last, classes = at, torch.stack([z[labels == c].mean(0) for c in range(images.num_classes)])
        maps[passes] = at @ torch.from_numpy(orthogonal_procrustes(at.numpy(), last.numpy())[0])
        probe[passes] = round(100 * evaluation.linear_probe(evaluation.feature_set(one.encoder, few, size=size)).top1, 1)
    short = {passes: [[round(value, 1) for value in row] for row in at.tolist()] for passes, at in reversed(maps.items())}
    alike = [[round(value, 2) + 0.0 for value in row] for row in (classes @ classes.T).tolist()]
    kept = {"class_names": list(images.class_names), "labels": labels[some].tolist(), "maps": short, "similarity": alike}
    return kept | {"probe": dict(reversed(probe.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="the folder of a finished run of pretrain")
    parser.add_argument("name", help="what the encoder is to be called")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--size", type=int, help="pixels at which it reads images best, found on validation (default: that of its views)")
    frame = "an encoder of the way there, after so many passes; - for the untrained one"
    parser.add_argument("--frame", nargs=2, action="append", default=[], metavar=("PASSES", "NETWORK"), help=frame)
    args = parser.parse_args()
    network = models.load_network(args.network)
    size = args.size or network.size
    network.about |= {"view": network.about.get("view", network.size), "size": size}
    untrained = comparison.fresh([network], None, dataset=args.dataset, size=size, seed=0, device="cpu")
    frames = {int(passes): untrained if path == "-" else models.load_network(path) for passes, path in args.frame}
    found = facts(network, frames, datasets.load(args.dataset, args.data_dir))
    models.saved.ENCODERS.mkdir(exist_ok=True)
    models.save_network(models.saved.ENCODERS / f"{args.name}{models.saved.ENDING}", network.encoder, **network.about)
    print(write_atomically(models.saved.ENCODERS / f"{args.name}.json", json.dumps(found).encode()))


if __name__ == "__main__":
    main()
