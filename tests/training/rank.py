"""What one of several processes does in the tests of `training.distributed`; also called in the test's own process, as the only one."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import image_set
from torch import nn

from sslcourse import augment, devices, models, training
from sslcourse.training import distributed

SIZE, IMAGES = 12, 12  # 12 images are shared by 1, 2 and 3 processes


class FixedViews(augment.TwoViews):
    """The image, and its mirror image in other units: two different views, without chance, in float64."""

    def __init__(self, size=SIZE, dtype=torch.float64):
        super().__init__(augment.evaluation(size), augment.evaluation(size, mean=(0.3, 0.4, 0.2), std=(0.5, 0.4, 0.3)))
        self.dtype = dtype

    def forward(self, images, generator=None):
        first, second = super().forward(images, generator)
        return [first.to(self.dtype), second.flip(3).to(self.dtype)]


class FixedView(nn.Module):
    """The image, without chance, in float64."""

    def __init__(self, size=SIZE, dtype=torch.float64):
        super().__init__()
        self.view, self.size, self.dtype = augment.evaluation(size), size, dtype

    def forward(self, images, generator=None):
        return self.view(images).to(self.dtype)


def method(name, size=SIZE, dtype=torch.float64):
    """A small method whose first weights depend on nothing."""
    torch.manual_seed(3)
    encoder = models.resnet9(2)
    views = FixedView(size, dtype) if name == "rotation" else FixedViews(size, dtype)
    heads = {"hidden_dim": 10, "out_dim": 6}
    if name == "rotation":
        made = models.Rotation(encoder, views)
    elif name == "simclr":
        made = models.SimCLR(encoder, views, temperature=0.3, **heads)
    elif name == "byol":
        made = models.BYOL(encoder, views, tau0=0.7, **heads)
    else:
        made = models.BarlowTwins(encoder, views, **heads)
    with torch.no_grad():  # heads that begin at zero would hide an error
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made.to(dtype)


def pictures():
    return torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)


def one_step(name):
    """Loss, gradients and buffers after one forward and backward pass on this process's part of the images."""
    made, rank, world = method(name), devices.rank(), devices.world_size()
    share = IMAGES // world
    device = torch.device("cpu")
    with distributed.one_gradient(made, device) as joint:
        loss = joint(pictures()[rank * share : (rank + 1) * share])
        loss.backward()
    if hasattr(made, "after_step"):
        made.after_step(1, 4)
    loss = distributed.mean_over_ranks({"loss": loss.item()}, device)["loss"]
    return {
        "loss": loss,
        "gradients": {key: p.grad.clone() for key, p in made.named_parameters() if p.grad is not None},
        "buffers": {key: value.clone() for key, value in made.state_dict().items() if "running" in key},
        "target": {key: value.clone() for key, value in made.state_dict().items() if key.startswith("target")},
        "kinds": sorted({type(part).__name__ for part in made.modules() if "BatchNorm" in type(part).__name__}),
    }


def train(name, epochs, checkpoint, stop_after=None, dtype=torch.float32):
    """A whole run on 48 images of 8 pixels; its weights and its rows. It looks at its features in float32 only."""
    made = method(name, 8, dtype)
    how = {"batch_size": 12, "lr": 1e-3, "precision": "fp32", "progress": False, "seed": 1}
    how["look_every"] = 2 if dtype == torch.float32 else 0
    history = training.pretrain(made, image_set(), epochs, checkpoint=checkpoint, stop_after=stop_after, **how)
    return {"weights": made.state_dict(), "rows": history.rows}


def _process(rank, world, store, task, arguments, out):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        torch.save(task(*arguments), f"{out}.{rank}")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def together(world, folder, task, *arguments):
    """Run a task in `world` processes and return what each of them made, in the order of ranks."""
    store, out = folder / f"store-{world}-{task.__name__}-{len(list(folder.iterdir()))}", folder / f"made-{world}-{task.__name__}"
    mp.spawn(_process, args=(world, str(store), task, arguments, str(out)), nprocs=world)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]
