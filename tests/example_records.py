"""A result record to change, for tests of what is done with records."""

import torch

from sslcourse import results


def make(**changes):
    """A record as a lesson writes it, with these fields changed."""
    given = {"method": "Supervised", "dataset": "toybox", "labels": 100, "image_size": 32, "network": "ResNet-9", "seed": 0, "tier": "cpu"}
    given |= {"device": torch.device("cpu"), "seconds": 12.34567, "metrics": {"top1": {"value": 0.873, "standard_error": 0.004, "n": 1000}}}
    lesson, name = changes.pop("lesson", 1), changes.pop("name", "supervised")
    return results.record(lesson, name, **(given | changes))
