"""Which attention a run takes: what its config names, what it began with, what is chosen on its device."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.data.packing import RowShape
from smallr.models.attention_choice import Choice
from smallr.models.attention_support import DeviceFacts
from smallr.training import attention as module
from smallr.training.attention import check_rows, for_any_rows, settle_attention, shape_of
from smallr.training.trainer import Trainer
from tests.runs import smoke
from tests.tiny import CONFIG
from tests.training.test_trainer import config_of, pairs

H100 = DeviceFacts("cuda", "NVIDIA H100 80GB HBM3", (9, 0))
MODEL = dataclasses.replace(CONFIG, dtype="bfloat16")


@pytest.fixture(autouse=True)
def _mesh():
    with jax.set_mesh(make_mesh(1, 1, -1)):
        yield


@pytest.fixture
def on_h100(monkeypatch):
    monkeypatch.setattr(module.DeviceFacts, "of", classmethod(lambda cls, device: H100))


def _settled(named: str = "auto", earlier=(), model=MODEL) -> Choice:
    return settle_attention(smoke("dpo", **{"compute.attention": named}), model, None, dict(earlier))


def test_auto_asks_for_the_choice_on_this_device(on_h100, monkeypatch, capsys):
    asked = []

    def choose(shape, device, packing):
        asked.append((shape, device, packing, jax.sharding.get_abstract_mesh().size))
        return Choice("cudnn", device.kind, "1.00 ms", shape.room)

    monkeypatch.setattr(module, "choose", choose)
    assert _settled().impl == "cudnn"
    ((shape, device, packing, devices),) = asked
    assert (shape.rows, shape.length, shape.kv_heads, shape.dtype) == (2, 512, 2, "bfloat16")
    assert (device, packing, devices) == (H100, None, 1)
    assert "attention: cudnn, 1.00 ms" in capsys.readouterr().out


def test_a_run_that_goes_on_takes_what_it_began_with(on_h100, monkeypatch):
    monkeypatch.setattr(module, "choose", lambda *args: pytest.fail("it was measured anew"))
    choice = _settled(earlier={"impl": "gpu", "device": H100.kind, "sequences": 12})
    assert (choice.impl, choice.sequences) == ("gpu", 12)


def test_another_device_is_asked_about(on_h100):
    earlier = {"impl": "tpu", "device": "TPU v5 lite", "sequences": 12}
    with pytest.raises(UserError, match=r"began on TPU v5 lite with the attention tpu, and this device is NVIDIA H100"):
        _settled(earlier=earlier)
    assert _settled("xla", earlier).impl == "xla", "naming one goes on"


def test_a_run_from_before_the_choice_goes_on_on_any_device(on_h100, monkeypatch):
    monkeypatch.setattr(module, "choose", lambda *args: pytest.fail("it was measured anew"))
    assert _settled(earlier={"impl": "auto", "device": "", "sequences": 0}).impl == "auto"


def test_rows_that_are_split_from_here_on_take_what_knows_them(on_h100, monkeypatch):
    monkeypatch.setattr(module, "context_size", lambda: 2)
    choice = _settled(earlier={"impl": "cudnn_packed", "device": H100.kind, "sequences": 12})
    assert (choice.impl, "it began with cudnn_packed" in choice.reason) == ("xla", True)


def test_what_cannot_run_is_refused():
    with pytest.raises(UserError, match=r"config\.compute\.attention=cudnn: it is for cuda, this is cpu; set config"):
        _settled("cudnn")
    choice = _settled("gpu")
    assert (choice.impl, "interpreted on the cpu" in choice.reason) == ("gpu", True)


def test_what_the_model_does_not_allow_is_refused(on_h100):
    with pytest.raises(UserError, match="cudnn_packed: it knows no soft-cap of the scores"):
        _settled("cudnn_packed", model=dataclasses.replace(MODEL, attention_softcap=50.0))


def test_completions_are_counted_by_kind_before_there_are_rows():
    assert shape_of(smoke("dpo"), MODEL, None).completions == 2
    assert shape_of(smoke("dpo", **{"data.kind": "completions"}), MODEL, None).completions == 0


def test_rows_with_too_many_completions_are_refused():
    choice = Choice("splash", "TPU v5 lite", "", sequences=16)
    check_rows(choice, RowShape(512, 64, examples=8))
    check_rows(choice, None)
    check_rows(dataclasses.replace(choice, impl="cudnn"), RowShape(512, 64, 9, 5))
    for shape in (RowShape(512, 64, examples=9), RowShape(512, 64, examples=2, completions=3)):
        with pytest.raises(UserError, match=r"set config\.batch\.examples="):
            check_rows(choice, shape)


def test_a_decoder_that_leaves_the_run_has_room_for_any_rows():
    from smallr.models.decoder import Decoder

    packed = dataclasses.replace(MODEL, attention="splash", attention_sequences=4)
    decoder = for_any_rows(nnx.eval_shape(lambda: Decoder(packed, rngs=nnx.Rngs(0))))
    for each in (decoder, decoder.layers, decoder.layers.attention):
        assert (each.config.attention, each.config.attention_sequences) == ("auto", 0)
    same = nnx.eval_shape(lambda: Decoder(dataclasses.replace(MODEL, attention="gpu"), rngs=nnx.Rngs(0)))
    assert for_any_rows(same).config.attention == "gpu"


@pytest.mark.slow
def test_the_choice_is_part_of_the_run(small_model, tmp_path, monkeypatch):
    """It is in config.json before the first checkpoint, computes policy and reference, and is asked about elsewhere."""
    config = config_of(small_model, steps=1)  # its programs are those of the tests of the trainer
    with Trainer(config, tmp_path) as trainer:
        trainer.load_data(pairs(":8"))
        trainer.fit()
        assert trainer.partition.config.attention == trainer.attention.impl == "xla"
        assert trainer.reference.kind == "cached"
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["attention"] == {
        "impl": "xla",
        "device": jax.local_devices()[0].device_kind,
        "sequences": trainer.attention.sequences,
    }
    monkeypatch.setattr(module.DeviceFacts, "of", classmethod(lambda cls, device: H100))
    with Trainer(config, tmp_path) as trainer, pytest.raises(UserError, match="this device is NVIDIA H100"):
        trainer.load()
