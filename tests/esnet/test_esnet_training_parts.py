"""The parts of training: losses, class weights, data, schedule, averaging."""

import json
import math
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from esnet.data.augment import Augmentation
from esnet.data.datasets import open_split
from esnet.errors import TrainingError
from esnet.labels import CAMVID
from esnet.training.data import EvalDataset, TrainDataset, TrainSampler, train_loader
from esnet.training.losses import class_weights, cross_entropy, label_counts, lovasz_softmax
from esnet.training.recipe import RECIPES, Recipe, recipe_named
from esnet.training.task import MovingAverage, poly_factor

K, IGNORE = 4, 9


def recipe(**changes) -> Recipe:
    settings = {
        "name": "tiny",
        "epochs": 2,
        "batch_size": 2,
        "augmentation": Augmentation(crop_hw=(32, 48), scale=(0.8, 1.5)),
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        **changes,
    }
    return Recipe(**settings)


def scored(seed=0, ignored=0.1):
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, K, 8, 10, generator=chance, requires_grad=True)
    labels = torch.randint(0, K, (2, 8, 10), generator=chance)
    labels[torch.rand(labels.shape, generator=chance) < ignored] = IGNORE
    return logits, labels


class TestLosses:
    def test_cross_entropy_is_torchs_weighted_mean(self):
        logits, labels = scored()
        weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
        expected = functional.cross_entropy(logits, labels, weights, ignore_index=IGNORE)
        torch.testing.assert_close(cross_entropy(logits, labels, weights, IGNORE), expected)

    @pytest.mark.parametrize("loss", ["cross_entropy", "lovasz"])
    def test_a_batch_without_labels_costs_nothing_and_has_no_nan(self, loss):
        logits, labels = scored(ignored=1.1)
        value = (
            cross_entropy(logits, labels, torch.ones(K), IGNORE)
            if loss == "cross_entropy"
            else lovasz_softmax(logits, labels, IGNORE)
        )
        value.backward()
        assert value.item() == 0
        assert not logits.grad.any()

    @pytest.mark.parametrize("seed", range(5))
    def test_lovasz_of_a_hard_prediction_is_one_minus_mean_iou(self, seed):
        _, labels = scored(seed)
        guess = torch.randint(
            0, K, labels.shape, generator=torch.Generator().manual_seed(seed + 50)
        )
        logits = 200.0 * functional.one_hot(guess, K).movedim(-1, 1)
        counted = labels != IGNORE
        jaccard = [
            ((labels == k) & (guess == k) & counted).sum()
            / (((labels == k) | (guess == k)) & counted).sum()
            for k in range(K)
        ]
        assert lovasz_softmax(logits, labels, IGNORE).item() == pytest.approx(
            1 - float(np.mean(jaccard)), abs=1e-5
        )

    def test_lovasz_leaves_out_classes_that_do_not_occur(self):
        _, labels = scored(ignored=0)
        labels = labels.clamp(max=1)
        perfect = 200.0 * functional.one_hot(labels, K).movedim(-1, 1).float()
        assert lovasz_softmax(perfect, labels, IGNORE).item() == pytest.approx(0, abs=1e-6)

    def test_lovasz_pulls_the_right_way(self):
        logits, labels = scored()
        before = lovasz_softmax(logits, labels, IGNORE)
        before.backward()
        assert lovasz_softmax(logits - 5 * logits.grad, labels, IGNORE) < before

    def test_a_stride_looks_at_fewer_pixels(self):
        logits, labels = scored()
        lovasz_softmax(logits, labels, IGNORE, stride=2).backward()
        touched = (logits.grad.abs().sum(1) > 0).float().mean().item()
        assert 0 < touched <= 0.25


class TestClassWeights:
    def test_the_formula(self):
        weights = class_weights(np.array([50, 30, 20]), 1.10)
        np.testing.assert_allclose(
            weights, [1 / math.log(1.1 + p) for p in (0.5, 0.3, 0.2)], rtol=1e-6
        )

    def test_without_an_offset_all_classes_weigh_the_same(self):
        np.testing.assert_array_equal(class_weights(np.array([1, 99]), None), [1, 1])

    def test_counts_leave_out_what_is_not_labelled(self, small_camvid, tmp_path):
        split = open_split("camvid", small_camvid, "train")
        counts = label_counts(split, tmp_path)
        every = np.concatenate([sample.labels.ravel() for sample in split])
        np.testing.assert_array_equal(counts, np.bincount(every[every != 11], minlength=11))

    def test_counts_are_made_once_and_again_when_a_file_changes(self, small_camvid, tmp_path):
        split = open_split("camvid", small_camvid, "train")
        label_counts(split, tmp_path)
        stored = next(tmp_path.glob("label-counts-*.json"))
        stored.write_text(json.dumps({"counts": [7] * 11}))
        assert label_counts(split, tmp_path).tolist() == [7] * 11
        mask_path = split.files[0].mask_path
        mask_path.write_bytes(split.files[1].mask_path.read_bytes())
        assert label_counts(split, tmp_path).tolist() != [7] * 11

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff", b"[]", b'{"counts": [1]}', b'{"counts": [-1' + b", 1" * 10 + b"]}"],
    )
    def test_a_damaged_cache_is_counted_again(self, small_camvid, tmp_path, content):
        split = open_split("camvid", small_camvid, "train")
        counts = label_counts(split, tmp_path)
        next(tmp_path.glob("label-counts-*.json")).write_bytes(content)
        np.testing.assert_array_equal(label_counts(split, tmp_path), counts)

    def test_names_of_masks_need_not_be_utf8(self, small_camvid, tmp_path):
        root = tmp_path / os.fsdecode(b"\xff")
        shutil.copytree(small_camvid, root)
        assert label_counts(open_split("camvid", root, "train"), tmp_path).sum()

    def test_a_cache_that_cannot_be_written_does_not_stop_training(self, small_camvid, tmp_path):
        (tmp_path / "file").touch()
        with pytest.warns(UserWarning, match="cannot write the cache"):
            counts = label_counts(open_split("camvid", small_camvid, "train"), tmp_path / "file")
        assert counts.sum()

    def test_counts_are_made_again_for_another_label_set(self, small_camvid, tmp_path):
        swapped = {index: 10 - index for index in range(11)} | {11: 11}
        other = replace(CAMVID, name="swapped", label_values=swapped)
        counts, mirrored = (
            label_counts(open_split("camvid", small_camvid, "train", label_set=each), tmp_path)
            for each in (CAMVID, other)
        )
        np.testing.assert_array_equal(mirrored, counts[::-1])


class TestViews:
    def test_a_view_is_decided_by_its_number_alone(self, small_camvid):
        split = open_split("camvid", small_camvid, "train")
        first, second = (TrainDataset(split, recipe(), seed=5) for _ in range(2))
        second[0]
        np.testing.assert_array_equal(first[7][0], second[7][0])

    def test_the_next_epoch_shows_a_picture_in_another_view(self, small_camvid):
        views = TrainDataset(open_split("camvid", small_camvid, "train"), recipe(), seed=5)
        assert (views[0][0] != views[len(views)][0]).any()

    @pytest.mark.parametrize("num_ranks", [1, 2])
    def test_ranks_share_an_epoch_without_overlap(self, num_ranks):
        shares = [
            list(TrainSampler(11, 4, seed=0, rank=rank, num_ranks=num_ranks))
            for rank in range(num_ranks)
        ]
        drawn = [view for share in shares for view in share]
        assert len(drawn) == len(set(drawn)) == 8
        assert len({len(share) for share in shares}) == 1

    def test_an_epochs_views_are_its_own(self):
        sampler = TrainSampler(10, 5, seed=0, rank=0, num_ranks=1)
        sampler.set_epoch(3)
        drawn = list(sampler)
        assert sorted(drawn) == list(range(30, 40))
        assert drawn != sorted(drawn)

    def test_a_split_smaller_than_a_batch_repeats_pictures(self):
        assert len(list(TrainSampler(3, 8, seed=0, rank=0, num_ranks=1))) == 8

    def test_workers_draw_what_the_process_itself_would_draw(self, small_camvid):
        views = TrainDataset(open_split("camvid", small_camvid, "train"), recipe(), seed=1)
        batches = [
            next(iter(train_loader(views, seed=1, rank=0, num_ranks=1, workers=workers)))
            for workers in (0, 1)
        ]
        torch.testing.assert_close(batches[0], batches[1])

    def test_every_picture_is_brought_to_the_recipes_size_first(self, small_camvid):
        views = TrainDataset(
            open_split("camvid", small_camvid, "train"), recipe(size_hw=(64, 96)), seed=0
        )
        assert views.cache[0].labels.shape == (64, 96)

    def test_whole_pictures_keep_their_labels_as_they_are(self, small_camvid):
        image, labels = EvalDataset(open_split("camvid", small_camvid, "val"), (32, 40))[0]
        assert image.shape == (32, 40, 3)
        assert labels.shape == (44, 52)

    def test_without_a_size_pictures_go_to_the_nearest_multiples_of_8(self, small_camvid):
        image, _ = EvalDataset(open_split("camvid", small_camvid, "val"), None)[0]
        assert image.shape == (48, 48, 3)  # 44 lies between 40 and 48: Python rounds 5.5 to 6


class TestSchedule:
    def test_it_rises_to_the_peak_and_falls_to_nothing(self):
        settings = recipe(warmup_steps=10)
        factors = [poly_factor(step, 100, settings) for step in range(101)]
        assert factors[:10] == sorted(factors[:10])
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert max(factors) < 1
        assert factors[100] == 0

    def test_without_warm_up_it_starts_at_the_peak(self):
        assert poly_factor(0, 100, recipe()) == 1
        assert poly_factor(50, 100, recipe()) == pytest.approx(0.5**0.9)


class TestAveraging:
    def test_it_approaches_the_weights_it_is_shown(self):
        average = MovingAverage(0.9)._kwargs["avg_fn"]
        value = torch.zeros(1)
        for step in range(200):
            value = average(value, torch.ones(1), torch.tensor(step + 1))
        assert value.item() == pytest.approx(1, abs=1e-4)

    def test_its_memory_is_short_at_first(self):
        average = MovingAverage(0.999)._kwargs["avg_fn"]
        assert average(torch.zeros(1), torch.ones(1), 1).item() == pytest.approx(1 - 2 / 11)

    def test_counters_are_taken_over_as_they_are(self):
        average = MovingAverage(0.9)._kwargs["avg_fn"]
        assert average(torch.tensor(3), torch.tensor(8), 5).item() == 8


class TestRecipes:
    @pytest.mark.parametrize("name", RECIPES)
    def test_a_recipe_is_named_as_it_is_asked_for(self, name):
        assert recipe_named(name).name == name

    def test_an_unknown_recipe_lists_those_there_are(self):
        with pytest.raises(TrainingError, match="unknown recipe 'fast'") as caught:
            recipe_named("fast")
        assert "camvid, cityscapes, paper" in caught.value.hint

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param(
                {"augmentation": Augmentation(crop_hw=(30, 48))}, "multiples of 8", id="crop"
            ),
            pytest.param({"epochs": 0}, "epochs must be at least 1", id="epochs"),
            pytest.param({"batch_size": 0}, "batch_size must be at least 1", id="batch"),
            pytest.param({"learning_rate": 0.0}, "learning rate", id="rate"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, change, message):
        with pytest.raises(TrainingError, match=message):
            recipe(**change)

    def test_the_log_uniform_zoom_is_as_often_small_as_large(self):
        scale = recipe_named("paper").augmentation.scale
        assert scale[0] * scale[1] == pytest.approx(1)


def test_no_part_uses_the_global_chance(small_camvid):
    views = TrainDataset(open_split("camvid", small_camvid, "train"), recipe(), seed=0)
    random.seed(1)
    np.random.seed(1)
    first = views[3][0]
    random.seed(2)
    np.random.seed(2)
    np.testing.assert_array_equal(first, views[3][0])
