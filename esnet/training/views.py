"""What the training loop draws from: random views of a split, and its pictures as they are."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from esnet.data.augment import augment
from esnet.data.labelled import LabelledSplit, Sample, nearest_size, read_sample
from esnet.training.recipe import Recipe

View = tuple[np.ndarray, np.ndarray]
_KEPT_BYTES = 2 << 30  # splits up to this size are decoded once and kept in memory


class TrainDataset(Dataset[View]):
    """Random views by number: view v shows picture v % len(split), with a chance that only v decides.

    So a run that is resumed draws what it would have drawn, whatever the number of workers and devices.
    """

    def __init__(self, split: LabelledSplit, recipe: Recipe, *, seed: int) -> None:
        """Keep small splits in memory, decoded."""
        self.files, self.ignore_index = split.files, split.label_set.ignore_index
        self.recipe, self.seed = recipe, seed
        self.kept = self._decoded()

    def __getitem__(self, view: int) -> View:
        """Draw view ``view``: RGB uint8 (H, W, 3) and labels uint8 (H, W) of the crop's size."""
        cv2.setNumThreads(1)  # the workers are the threads
        index = view % len(self.files)
        sample = self.kept[index] if self.kept else self._read(index)
        random = np.random.default_rng((self.seed, view))
        drawn = augment(sample, self.recipe.augmentation, self.ignore_index, random)
        return drawn.image, drawn.labels

    def __len__(self) -> int:
        """Get the number of pictures; views have no end."""
        return len(self.files)

    def _decoded(self) -> list[Sample]:
        """Decode the whole split, or nothing if it would take too much memory."""
        first = self._read(0)
        if (first.image.nbytes + first.labels.nbytes) * len(self.files) > _KEPT_BYTES:
            return []
        return [first, *(self._read(index) for index in range(1, len(self.files)))]

    def _read(self, index: int) -> Sample:
        return _resized(read_sample(self.files[index]), self.recipe.size_hw)


class ViewSampler(Sampler[int]):
    """Numbers of one epoch's views in random order, a device's share of them; every share is equally long."""

    def __init__(self, num_pictures: int, batch_size: int, *, seed: int, rank: int, num_ranks: int):
        """Leave out what does not fill a batch; another part every epoch."""
        self.num_pictures, self.seed, self.rank, self.num_ranks = (
            num_pictures,
            seed,
            rank,
            num_ranks,
        )
        whole = max(num_pictures // batch_size, 1) * batch_size
        self.num_drawn = whole // num_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_drawn

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_pictures)
        order = np.resize(
            order, self.num_drawn * self.num_ranks
        )  # a split smaller than a batch repeats
        shares = order[self.rank :: self.num_ranks]
        return iter((self.epoch * self.num_pictures + shares).tolist())


class EvalDataset(Dataset[View]):
    """A split's pictures brought to the network's size, with their labels as they are."""

    def __init__(self, split: LabelledSplit, size_hw: tuple[int, int] | None) -> None:
        """Bring pictures to ``size_hw``; ``None`` takes the nearest multiples of 8 of their own."""
        self.split, self.size_hw = split, size_hw

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> View:
        """Get RGB uint8 (H, W, 3) of the network's size, and labels uint8 of their own."""
        sample = self.split[index]
        size_hw = self.size_hw or nearest_size(sample.labels.shape)
        return resize_image(sample.image, size_hw), sample.labels


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bring a picture to a size, bilinear as the runtime does; the same array where nothing changes."""
    if image.shape[:2] == size_hw:
        return image
    return np.asarray(cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR))


def training_loader(
    views: TrainDataset, *, seed: int, rank: int, num_ranks: int, workers: int
) -> DataLoader[View]:
    """Batch random views, (N, H, W, 3) and (N, H, W) uint8."""
    batch_size = views.recipe.batch_size
    return DataLoader(
        views,
        batch_size=batch_size // num_ranks,
        sampler=ViewSampler(len(views), batch_size, seed=seed, rank=rank, num_ranks=num_ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        # A fork would inherit OpenCV's thread pool without its threads, and wait for them.
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def validation_loader(pictures: EvalDataset, *, rank: int, num_ranks: int) -> DataLoader[View]:
    """Give pictures one by one, each to one device."""
    return DataLoader(pictures, batch_size=1, sampler=range(rank, len(pictures), num_ranks))


def _resized(sample: Sample, size_hw: tuple[int, int] | None) -> Sample:
    if size_hw is None or sample.labels.shape == size_hw:
        return sample
    labels = cv2.resize(sample.labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return Sample(resize_image(sample.image, size_hw), labels)
