"""What one of several processes does in the tests of `training.distributed`; also called in the test's own process, as the only one."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import image_set

from sslcourse import augment, devices, models, training
from sslcourse.training import distributed

METHODS = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}
METHODS |= {"mae": models.MAE, "dino": models.DINO}
MOVED = ("target", "teacher", "center")  # by no gradient


class FixedViews(augment.TwoViews):
    """The image, without chance, and its mirror image in other units; for rotation the image only."""

    def __init__(self, size, dtype, alone):
        super().__init__(augment.evaluation(size), augment.evaluation(size, mean=(0.3, 0.4, 0.2), std=(0.5, 0.4, 0.3)))
        self.dtype, self.alone = dtype, alone

    def forward(self, images, generator=None):
        first, second = super().forward(images, generator)
        return first.to(self.dtype) if self.alone else [first.to(self.dtype), second.flip(3).to(self.dtype)]


def method(name, size=12, dtype=torch.float64):
    """A small method whose first weights depend on nothing."""
    torch.manual_seed(3)
    heads = {"rotation": {}, "mae": {"decoder_width": 8, "decoder_heads": 2}}.get(name, {"hidden_dim": 10, "out_dim": 6})
    encoder = models.vit(4, 8, 2, 2, size) if name == "mae" else models.resnet9(2)
    made = METHODS[name](encoder, FixedViews(size, dtype, name in ("rotation", "mae")), **heads)
    if name == "mae":
        seen = torch.tensor([1, 5])  # of every image, and nothing is drawn
        made.random_mask = lambda n, patches, device: (seen.expand(n, 2), torch.ones(n, patches).index_fill_(1, seen, 0))
    with torch.no_grad():  # heads that begin at zero would hide an error
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made.to(dtype)


def one_step(name, images=12):
    """Loss, gradients and buffers after one forward and backward pass on this process's part of the images."""
    made, rank, share = method(name), devices.rank(), images // devices.world_size()
    pictures = torch.randint(0, 256, (12, 3, 12, 12), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    with distributed.one_gradient(made, torch.device("cpu")) as joint:
        loss = joint(pictures[rank * share : (rank + 1) * share])
        loss.backward()
    if hasattr(made, "after_step"):
        made.after_step(1, 4)
    return {
        "loss": distributed.mean_over_ranks({"loss": loss.item()}, torch.device("cpu"))["loss"],
        "gradients": {key: p.grad.clone() for key, p in made.named_parameters() if p.grad is not None},
        "buffers": {key: v.clone() for key, v in made.state_dict().items() if "running" in key or key.split(".")[0] in MOVED},
        "kinds": sorted({type(part).__name__ for part in made.modules() if "BatchNorm" in type(part).__name__}),
    }


def train(checkpoint, stop_after=None, dtype=torch.float64):
    """A whole run of SimCLR on 48 images of 8 pixels; its weights and its rows. It looks at its features in float32 only."""
    made = method("simclr", 8, dtype)
    how = {"batch_size": 12, "lr": 1e-3, "precision": "fp32", "progress": False, "seed": 1, "look_every": 2 * (dtype == torch.float32)}
    history = training.pretrain(made, image_set(), 4, checkpoint=checkpoint, stop_after=stop_after, **how)
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
    store, out = folder / f"store-{len(list(folder.iterdir()))}", folder / "made"
    mp.spawn(_process, args=(world, str(store), task, arguments, str(out)), nprocs=world)
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]
