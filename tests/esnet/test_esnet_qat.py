"""Quantization-aware training: same rounding as the INT8 artefact, ordinary float checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from esnet.checkpoint import load_checkpoint
from esnet.data.augment import Augmentation
from esnet.data.datasets import open_split
from esnet.errors import TrainingError
from esnet.families import FAMILIES
from esnet.metrics import ConfusionMatrix
from esnet.model import ESNet
from esnet.training.cli import app
from esnet.training.data import EvalDataset
from esnet.training.qat import FakeQuantization, round_activation, round_weight
from esnet.training.recipe import Recipe, quantization_aware, recipe_named
from esnet.training.run import train
from esnet.training.run_log import RunLog
from esnet.training.settings import RunSettings
from export.graph.qdq import SCHEMES, activation_scale, insert_qdq
from export.plan import ExportPlan, graph_from_network
from export.quantization.calibration import measure_ranges
from export.quantization.check import run_unoptimized

SIZE = (32, 64)
FRAMES = np.random.default_rng(0).random((2, 1, 3, *SIZE), np.float32)  # no ties, as bytes have


def random_network(family: str) -> ESNet:
    """Make a network with BN statistics of noise, and BN scales of both signs."""
    torch.manual_seed(0)
    network = ESNet(FAMILIES[family].config(11)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.eval()
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::3] *= -1
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(4, 3, *SIZE))
    return network.eval()


class Exported:
    """A network and its deployed graph, float, with the inputs of its convolutions measured."""

    def __init__(self, network: ESNet) -> None:
        plan = ExportPlan(size_hw=SIZE, input="tensor", outputs=("logits",), upsample="transpose")
        self.network, self.model = network, graph_from_network(network, plan)
        self.ranges = measure_ranges(self.model, list(FRAMES), "max")[0]
        self.inputs = {n.name: n.input[0] for n in self.model.graph.node if "Conv" in n.op_type}

    def quantization(self, scheme: str, only: tuple[str, ...] = ()) -> FakeQuantization:
        """Make the fake quantization of all or some convolutions, with the ranges of the graph."""
        made = FakeQuantization(self.network, scheme).eval()
        made.axes = {path: axis for path, axis in made.axes.items() if path in only or not only}
        bounds = [self.ranges[self.inputs[path]] for path in made.axes]
        made.bounds, made.num_batches = torch.tensor(bounds), made.num_batches[: len(bounds)]
        return made

    def graph(self, scheme: str, only: tuple[str, ...] = ()) -> onnx.ModelProto:
        """Quantize the graph, all of it or some convolutions."""
        keep = [name for name in self.inputs if only and name not in only]
        return insert_qdq(self.model, self.ranges, SCHEMES[scheme], keep=keep)


@pytest.fixture(scope="module")
def exported() -> dict[str, Exported]:
    return {name: Exported(random_network(name)) for name in FAMILIES}


def scores(quantization: FakeQuantization, network: ESNet) -> np.ndarray:
    with torch.no_grad():
        return quantization(network, torch.from_numpy(FRAMES[:, 0])).numpy()


def graph_scores(model: onnx.ModelProto) -> np.ndarray:
    return np.concatenate(run_unoptimized(model, list(FRAMES)))


class TestRounding:
    """Compare one convolution at a time.

    Float noise can change a rounding by a whole step, which changes further roundings: after some layers two
    exact implementations differ as much from each other as from float.
    """

    def test_the_convolutions_are_those_of_the_graph(self, exported):
        for one in exported.values():
            assert list(one.quantization("cpu").axes) == list(one.inputs)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize(
        ("family", "path"),
        [
            pytest.param("authors", "encoder.initial_block.conv", id="behind-it-a-concat"),
            pytest.param("authors", "encoder.layers.0.conv3x1_1", id="fcu-skip"),
            pytest.param("authors", "encoder.layers.4.conv1x3_2", id="fcu-last"),
            pytest.param("authors", "encoder.layers.7.conv3x1_1", id="pfcu-skip"),
            pytest.param("pytorchcv", "encoder.layers.7.conv3x1_1", id="pfcu-skip-stacked"),
            pytest.param("zh320", "encoder.layers.7.conv3x1_1", id="pfcu-skip-branches-first"),
            pytest.param("authors", "encoder.layers.8.conv1x3_25", id="pfcu-branch"),
            pytest.param("authors", "decoder.layers.0.conv", id="transposed"),
            pytest.param("authors", "decoder.output_conv", id="head"),
            pytest.param("zh320", "decoder.output_conv", id="head-with-norm"),
        ],
    )
    def test_one_convolution_rounds_as_in_the_graph(self, exported, scheme, family, path):
        one = exported[family]
        in_graph = graph_scores(one.graph(scheme, (path,)))
        in_float = graph_scores(one.model)
        ours = scores(one.quantization(scheme, (path,)), one.network)
        # Single changed roundings give up to 0.05; a wrongly rounded skip gives 0.15 and more.
        assert np.abs(ours - in_graph).mean() < 0.1 * np.abs(in_float - in_graph).mean()

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_all_together_cost_what_the_graph_costs(self, exported, scheme):
        one = exported["authors"]
        in_float = graph_scores(one.model)
        in_graph = np.abs(graph_scores(one.graph(scheme)) - in_float).mean()
        ours = np.abs(scores(one.quantization(scheme), one.network) - in_float).mean()
        assert ours == pytest.approx(in_graph, rel=0.1)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize(
        "bounds",
        [
            pytest.param((0.0, 2.5), id="behind-relu"),
            pytest.param((-1.0, 3.0), id="both-signs"),
            pytest.param((0.5, 2.0), id="zero-is-made-part"),
            pytest.param((0.0, 0.0), id="nothing"),
        ],
    )
    def test_activations_take_the_levels_of_the_exporter(self, scheme, bounds):
        scale, zero = activation_scale(bounds, SCHEMES[scheme])
        low, high = (-128, 127) if SCHEMES[scheme].is_symmetric else (0, 255)
        values = torch.linspace(-4, 4, 999)
        expected = (np.clip(np.round(values.numpy() / scale) + zero, low, high) - zero) * scale
        got = round_activation(
            values, torch.tensor(bounds), is_symmetric=SCHEMES[scheme].is_symmetric
        )
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
        assert not round_activation(torch.zeros(1), torch.tensor(bounds), is_symmetric=False).any()

    def test_gradients_pass_weights_as_they_are_and_activations_inside_the_range(self):
        weight = torch.randn(4, 3, 3, 3, requires_grad=True)
        round_weight(weight, 1).sum().backward()
        assert torch.equal(weight.grad, torch.ones_like(weight))
        values = torch.tensor([-3.0, -1.0, 0.2, 1.0, 3.0], requires_grad=True)
        round_activation(values, torch.tensor([-2.0, 2.0]), is_symmetric=True).sum().backward()
        assert values.grad.tolist() == [0, 1, 1, 1, 0]

    def test_reduced_precision_stays_what_it_is(self):
        values = torch.linspace(-1, 1, 99, dtype=torch.bfloat16)
        rounded = round_activation(values, torch.tensor([-1.0, 1.0]), is_symmetric=True)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded, values, atol=0.5 / 127 + 2**-9, rtol=0)

    def test_every_parameter_that_is_deployed_learns(self):
        network = random_network("authors")
        quantization = FakeQuantization(network, "tensorrt")
        quantization(network, torch.from_numpy(FRAMES[:, 0])).square().mean().backward()
        for name, parameter in network.named_parameters():
            if not name.startswith("encoder_output_conv"):
                assert parameter.grad is not None, name
                assert parameter.grad.any(), name


class TestRanges:
    def test_they_follow_the_batches_of_training_alone(self):
        network = random_network("authors")
        quantization = FakeQuantization(network, "cpu")
        batches = [factor * torch.rand(1, 3, *SIZE) for factor in (1.0, 3.0)]
        for batch in batches:
            quantization(network, batch)
        expected = [torch.stack(torch.aminmax(batch)) for batch in batches]
        torch.testing.assert_close(quantization.bounds[0], (expected[0] + expected[1]) / 2)
        before = quantization.eval().bounds.clone()
        quantization(network, 50 * batches[0])
        assert torch.equal(quantization.bounds, before)

    def test_the_network_itself_stays_as_it_was(self):
        network = random_network("authors")
        frames = torch.from_numpy(FRAMES[:, 0])
        keys, before = list(network.state_dict()), network(frames)
        FakeQuantization(network, "tensorrt")(network, frames)
        assert list(network.state_dict()) == keys
        assert torch.equal(network(frames), before)


def settings(data: Path, run_dir: Path, **changes) -> RunSettings:
    recipe = Recipe(
        name="tiny",
        epochs=2,
        batch_size=2,
        augmentation=Augmentation(crop_hw=(32, 48), scale=(0.8, 1.5)),
        learning_rate=1e-4,
        weight_decay=1e-4,
        ema_decay=0.9,
        quantization="tensorrt",
    )
    return RunSettings(
        dataset="camvid",
        data_dir=data,
        run_dir=run_dir,
        recipe=replace(recipe, **changes),
        init="camvid",
        accelerator="cpu",
        precision="fp32",
        workers=0,
        validate_every=1,
    )


@pytest.fixture(scope="module")
def tuned(small_camvid, tmp_path_factory) -> Path:
    """A finished run of two epochs from the shipped weights."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(settings(small_camvid, run_dir))
    return run_dir


class TestRun:
    @pytest.mark.parametrize("name", ["best.ckpt", "last.safetensors"])
    def test_it_leaves_an_ordinary_checkpoint_that_says_what_it_is(self, tuned, name):
        checkpoint = load_checkpoint(tuned / name)
        assert checkpoint.metadata["quantization_aware"].startswith("int8, scheme tensorrt")
        assert checkpoint.family.name == "authors"
        config = json.loads((tuned / "config.json").read_text())
        assert config["recipe"]["quantization"] == "tensorrt"

    def test_the_keys_are_those_of_any_run(self, tuned):
        stored = torch.load(tuned / "last.ckpt", weights_only=True)
        keys = [f"network.{key}" for key in load_checkpoint("camvid").network.state_dict()]
        assert list(stored["state_dict"]) == list(stored["current_model_state"]) == keys

    def test_weights_move_and_batch_statistics_do_not(self, tuned):
        before, after = (
            load_checkpoint(source).network.state_dict()
            for source in ("camvid", tuned / "last.ckpt")
        )
        for key, value in before.items():
            is_statistic = key.rpartition(".")[2].startswith(("running_", "num_batches"))
            is_trained = not is_statistic and not key.startswith("encoder_output_conv")
            assert torch.equal(after[key], value) != is_trained, key

    def test_what_is_measured_is_the_rounded_network(self, tuned, small_camvid):
        stored = torch.load(tuned / "best.ckpt", weights_only=True)
        ranges = stored["quantization_ranges"]["state_dict"]
        network = load_checkpoint(tuned / "best.ckpt").network.to(memory_format=torch.channels_last)
        quantization = FakeQuantization(network, "tensorrt").eval()
        quantization.load_state_dict({key[len("quantization.") :]: ranges[key] for key in ranges})
        split = open_split("camvid", small_camvid, "val")
        matrix = ConfusionMatrix(11, split.label_set.ignore_index)
        for image, labels in EvalDataset(split, None):
            frame = torch.as_tensor(image)[None].permute(0, 3, 1, 2).float().div(255)
            with torch.no_grad():
                predicted = quantization(network, frame).argmax(1, keepdim=True).float()
            at_labels = torch.nn.functional.interpolate(
                predicted, size=labels.shape, mode="nearest-exact"
            )
            matrix.update(np.asarray(labels), at_labels[0, 0].numpy().astype(np.uint8))
        assert matrix.miou == pytest.approx(float(stored["esnet"]["val_miou"]), abs=1e-3)

    def test_stopped_and_continued_is_as_if_never_stopped(
        self, tuned, small_camvid, tmp_path, monkeypatch
    ):
        run_dir = tmp_path / "run"
        start_epoch = RunLog.on_train_epoch_start

        def stop(self, trainer, module):
            start_epoch(self, trainer, module)
            if trainer.current_epoch == 1:
                raise RuntimeError("the power went")

        with monkeypatch.context() as patch:
            patch.setattr(RunLog, "on_train_epoch_start", stop)
            with pytest.raises(RuntimeError, match="the power went"):
                train(settings(small_camvid, run_dir))
        train(settings(small_camvid, run_dir))
        ours, theirs = (
            torch.load(path / "last.ckpt", weights_only=True) for path in (run_dir, tuned)
        )
        torch.testing.assert_close(ours["state_dict"], theirs["state_dict"])
        torch.testing.assert_close(ours["quantization_ranges"], theirs["quantization_ranges"])

    def test_the_command_line_asks_for_weights(self, small_camvid, tmp_path):
        words = ["--data", str(small_camvid), "-o", str(tmp_path / "run"), "--qat"]
        result = CliRunner().invoke(app, [*words, "--accelerator", "cpu"])
        assert isinstance(result.exception, TrainingError)
        assert "needs trained weights" in str(result.exception)
        assert "--init" in result.exception.hint
        assert not (tmp_path / "run").exists()

    def test_weights_of_another_layout_are_refused_before_the_work(self, small_camvid, tmp_path):
        network, family = random_network("pytorchcv"), FAMILIES["pytorchcv"]
        state = network.state_dict()
        weights = tmp_path / "other.pth"
        torch.save({theirs: state[ours] for ours, theirs in family.keys(network).items()}, weights)
        asked = replace(settings(small_camvid, tmp_path / "run"), init=str(weights))
        with pytest.raises(TrainingError, match="has the pytorchcv layout"):
            train(asked)
        assert not (tmp_path / "run").exists()


class TestRecipe:
    def test_a_few_epochs_at_a_low_rate_the_rest_as_it_was(self):
        recipe = quantization_aware(recipe_named("paper"))
        assert (recipe.epochs, recipe.encoder_epochs, recipe.learning_rate) == (3, 0, 1e-4)
        assert recipe.augmentation == recipe_named("paper").augmentation

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"quantization": "int4"}, "unknown quantization 'int4'", id="scheme"),
            pytest.param(
                {"quantization": "cpu", "encoder_epochs": 2},
                "2 epochs of encoder training",
                id="encoder",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(self, changes, message):
        with pytest.raises(TrainingError, match=message):
            replace(recipe_named("camvid"), **changes)
