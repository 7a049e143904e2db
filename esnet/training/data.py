"""Datasets and loaders of the training loop: augmented samples for training, whole images for validation."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from esnet.data.augment import augment
from esnet.data.labelled import LabelledSplit, Sample, nearest_size
from esnet.training.recipe import Recipe
from runtime.media.frames import resize_frame

ImageAndLabels = tuple[np.ndarray, np.ndarray]
_MAX_CACHE_BYTES = 2 << 30  # splits up to this decoded size are kept in memory


class TrainDataset(Dataset[ImageAndLabels]):
    """Augmented samples: index i is image i % len(split), augmented by a generator seeded with i.

    A resumed run therefore gets the samples that an uninterrupted one gets, with any number of workers and
    devices.
    """

    def __init__(self, split: LabelledSplit, recipe: Recipe, *, seed: int) -> None:
        """Decode the split, and keep it in memory if it is small enough."""
        self.split, self.recipe, self.seed = split, recipe, seed
        first = self._read(0)
        is_small = (first.image.nbytes + first.labels.nbytes) * len(split) <= _MAX_CACHE_BYTES
        self.cache = [self._read(i) for i in range(len(split))] if is_small else []

    def __getitem__(self, index: int) -> ImageAndLabels:
        """Get RGB uint8 (H, W, 3) and labels uint8 (H, W) of the crop size; any index from 0 is valid."""
        cv2.setNumThreads(1)  # the parallelism is in the workers
        position = index % len(self)
        sample = self.cache[position] if self.cache else self._read(position)
        random = np.random.default_rng((self.seed, index))
        ignore_index = self.split.label_set.ignore_index
        augmented = augment(sample, self.recipe.augmentation, ignore_index, random)
        return augmented.image, augmented.labels

    def __len__(self) -> int:
        return len(self.split)

    def _read(self, position: int) -> Sample:
        """Read an image and its labels, and resize them to the recipe's size."""
        sample, size_hw = self.split[position], self.recipe.size_hw
        if size_hw is None or sample.labels.shape == size_hw:
            return sample
        labels = cv2.resize(sample.labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
        return Sample(resize_frame(sample.image, size_hw), labels)


class TrainSampler(Sampler[int]):
    """Shuffled sample indices of one epoch, split evenly over the devices."""

    def __init__(self, num_images: int, batch_size: int, *, seed: int, rank: int, num_ranks: int):
        """Drop the images of each epoch that do not fill a batch; every epoch drops others."""
        self.num_images, self.seed, self.rank, self.num_ranks = num_images, seed, rank, num_ranks
        self.num_samples = max(num_images // batch_size, 1) * batch_size // num_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch; the trainer calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        order = np.resize(order, self.num_samples * self.num_ranks)  # repeats if below a batch
        indices = self.epoch * self.num_images + order[self.rank :: self.num_ranks]
        return iter(indices.tolist())


class EvalDataset(Dataset[ImageAndLabels]):
    """Images of a split, resized to the network's input size, with labels of the original size."""

    def __init__(self, split: LabelledSplit, size_hw: tuple[int, int] | None) -> None:
        """Set the input size; ``None`` rounds each image's own size to multiples of 8."""
        self.split, self.size_hw = split, size_hw

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> ImageAndLabels:
        """Get RGB uint8 (H, W, 3) of the input size, and labels uint8 of the original size."""
        sample = self.split[index]
        size_hw = self.size_hw or nearest_size(sample.labels.shape)
        return resize_frame(sample.image, size_hw), sample.labels


def train_loader(
    dataset: TrainDataset, *, seed: int, rank: int, num_ranks: int, workers: int
) -> DataLoader[ImageAndLabels]:
    """Load batches for one of ``num_ranks`` devices: uint8 (N, H, W, 3) and (N, H, W)."""
    batch_size = dataset.recipe.batch_size
    return DataLoader(
        dataset,
        batch_size=batch_size // num_ranks,
        sampler=TrainSampler(len(dataset), batch_size, seed=seed, rank=rank, num_ranks=num_ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        # A forked worker inherits OpenCV's thread pool without its threads, and hangs.
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
