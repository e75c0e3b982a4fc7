"""PIL images for a DataLoader that takes them one by one: what both benchmarks compare this package with."""

from torch.utils.data import Dataset


class Pictures(Dataset):
    """PIL images in memory, transformed one by one. It pretends to be endless, so that no pass ends while the clock runs."""

    def __init__(self, images, transform):
        from torchvision.transforms.v2.functional import to_pil_image

        self.pictures = [to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self):
        return 2**40

    def __getitem__(self, index):
        return self.transform(self.pictures[index % len(self.pictures)])


def endless_order():
    row = 0
    while True:
        yield row
        row += 1
