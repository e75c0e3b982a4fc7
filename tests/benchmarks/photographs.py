"""Prepare an encoder of a long run to come with the package: its file, and facts about its features, numbers without any photograph.

python tests/benchmarks/photographs.py runs/cifar cifar10-simclr --dataset cifar10 --size 32
"""

import argparse
import json

import torch
from torch.nn import functional as F

from sslcourse import datasets, evaluation, models
from sslcourse.files import write_atomically

ON_THE_MAP = 60  # images of each class


def facts(network: models.Network, images) -> dict:
    """A t-SNE map of some test images, and the mean cosine of each two classes, of features from which the mean of all is taken."""
    asked, labels = images.test_images, images.test_labels.cpu()
    z = evaluation.features(network.encoder, asked, block=network.block, size=network.size)
    z = F.normalize(z - z.mean(0), dim=1)
    classes = torch.stack([z[labels == c].mean(0) for c in range(images.num_classes)])
    some = torch.cat([(labels == c).nonzero()[:ON_THE_MAP, 0] for c in range(images.num_classes)])
    shown = {"map": evaluation.tsne(z[some]).tolist(), "similarity": (classes @ classes.T).tolist()}
    shown = {name: [[round(value, 2) for value in row] for row in rows] for name, rows in shown.items()}
    return {"class_names": list(images.class_names), "labels": labels[some].tolist(), **shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="the folder of a finished run of pretrain")
    parser.add_argument("name", help="what the encoder is to be called")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--size", type=int, help="pixels at which it reads images best, found on validation (default: that of its views)")
    args = parser.parse_args()
    network = models.load_network(args.network)
    network.about |= {"size": args.size or network.size, "view": network.about.get("view", network.size)}
    found = facts(network, datasets.load(args.dataset, args.data_dir))
    models.saved.ENCODERS.mkdir(exist_ok=True)
    models.save_network(models.saved.ENCODERS / f"{args.name}{models.saved.ENDING}", network.encoder, **network.about)
    print(write_atomically(models.saved.ENCODERS / f"{args.name}.json", json.dumps(found).encode()))


if __name__ == "__main__":
    main()
