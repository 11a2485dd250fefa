import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import warnings as warnings_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from etils.epath import gpath
from flax import nnx

from smallr.core.errors import UserError
from smallr.training.checkpoints import Checkpointer, CheckpointError, StructureMismatchError
from smallr.training.digest import named_leaves, tree_digest
from tests.runs import environment


def _state(seed: int, width: int = 8) -> dict[str, Any]:
    layer = nnx.Linear(4, width, rngs=nnx.Rngs(seed))
    params = nnx.state(layer)
    optimizer = optax.adamw(1e-3).init(params)
    optimizer = jax.tree.map(lambda x: x + seed, optimizer)
    return {
        "params": params,
        "optimizer": optimizer,
        "table": jax.random.normal(jax.random.key(seed), (64, 32)),
        "step": jnp.int32(seed),
        "rng": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "half": jnp.linspace(0, seed + 1, 5).astype(jnp.bfloat16),
        "mask": jnp.array([True, False, seed % 2 == 0]),
        "empty": jnp.zeros((0, 4)),
        "nan": jnp.asarray(np.array([0x7FC00001, 0xFF800000], np.uint32).view(np.float32)),
        "position": np.arange(3) + seed,
        "count": seed,
    }


def _abstract(state: Any) -> Any:
    def one(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x

    return jax.tree.map(one, state)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture):
    absl_logging.get_absl_logger().addHandler(caplog.handler)
    yield caplog
    absl_logging.get_absl_logger().removeHandler(caplog.handler)


def _saved(directory: Path, *steps: int, **options: int) -> Checkpointer:
    checkpointer = Checkpointer(str(directory), **({"keep_last": 9} | options))
    for step in steps:
        assert checkpointer.save(step, _state(step), {"data": {"position": step}})
    checkpointer.wait()
    return checkpointer


def test_nothing_there_restores_to_none(tmp_path):
    checkpointer = Checkpointer(str(tmp_path / "new" / "checkpoints"))
    assert checkpointer.latest_step() is None
    assert checkpointer.restore_latest(_abstract(_state(0))) is None
    checkpointer.close()


def test_a_state_of_all_kinds_comes_back_bit_for_bit(tmp_path):
    _saved(tmp_path, 3, 7).close()
    checkpointer = Checkpointer(str(tmp_path))
    restored = checkpointer.restore_latest(_abstract(_state(0)))
    assert (restored.step, restored.metadata) == (7, {"data": {"position": 7}})
    assert jax.tree.structure(restored.state) == jax.tree.structure(_state(7))
    assert isinstance(restored.state["params"]["kernel"], nnx.Param)
    for name, (got, want) in _pairs(restored.state, _state(7)).items():
        assert type(got) is type(want) or isinstance(want, int), name
        assert np.asarray(_bits(got)).tobytes() == np.asarray(_bits(want)).tobytes(), name
        assert getattr(got, "dtype", None) == getattr(want, "dtype", np.dtype(int)), name
    assert jax.random.key_impl(restored.state["keys"]) == jax.random.key_impl(_state(7)["keys"])
    checkpointer.close()


def _pairs(got: Any, want: Any) -> dict[str, tuple[Any, Any]]:
    got, want = named_leaves(got), named_leaves(want)
    assert list(got) == list(want)
    return {name: (got[name], want[name]) for name in want}


def _bits(x: Any) -> Any:
    return jax.random.key_data(x) if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key) else x


def test_the_layout_does_not_depend_on_python_classes(tmp_path):
    checkpointer = _saved(tmp_path, 1)
    plain = {"/".join(n.split("/")): leaf for n, leaf in named_leaves(_abstract(_state(1))).items()}
    nested: dict[str, Any] = {}
    for name, leaf in plain.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    restored = checkpointer.restore_latest(nested)
    assert tree_digest(restored.state) == tree_digest(_state(1))
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not any("pickle" in name or name.endswith(".pkl") for name in files)
    checkpointer.close()


def test_metadata_carries_the_digest_and_the_leaves(tmp_path):
    _saved(tmp_path, 2).close()
    envelope = json.loads((tmp_path / "2" / "metadata" / "metadata").read_text())
    assert envelope["digest"] == tree_digest(_state(2))
    assert envelope["leaves"]["params/kernel"] == ["float32", [4, 8]]
    assert envelope["leaves"]["empty"] == ["float32", [0, 4]]
    assert (envelope["format"], envelope["step"], envelope["user"]) == (1, 2, {"data": {"position": 2}})


def test_buffers_may_be_donated_right_after_save(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = advance({f"w{i}": jnp.zeros((1024, 256), jnp.float32) for i in range(8)})
    checkpointer = Checkpointer(str(tmp_path), keep_last=9)
    value = 1.0
    wanted = {}
    for step in range(4):
        checkpointer.save(step, state, {})
        wanted[step] = value
        for _ in range(5):
            state, value = advance(state), value + 1
    checkpointer.close()
    for step, number in wanted.items():
        for later in range(step + 1, 4):
            (tmp_path / str(later)).exists() and os.rename(tmp_path / str(later), tmp_path / f"moved-{later}")
        restored = Checkpointer(str(tmp_path), keep_last=9).restore_latest(_abstract(state))
        assert restored.step == step
        assert all(bool((w == number).all()) for w in restored.state.values()), (step, number)
        for later in range(step + 1, 4):
            os.rename(tmp_path / f"moved-{later}", tmp_path / str(later))


def test_old_checkpoints_go_and_every_kth_stays(tmp_path):
    checkpointer = _saved(tmp_path, 1, 2, 3, 4, 5, 6, 7, keep_last=2, keep_every=3)
    assert checkpointer.latest_step() == 7
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"3", "6", "7"}
    checkpointer.save(8, _state(8), {})
    checkpointer.close()
    assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == {"3", "6", "7", "8"}


def test_a_step_is_saved_once(tmp_path):
    checkpointer = _saved(tmp_path, 4)
    assert checkpointer.save(4, _state(5), {}) is False
    assert tree_digest(checkpointer.restore_latest(_abstract(_state(0))).state) == tree_digest(_state(4))
    checkpointer.close()


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    path.write_bytes(bytes(data))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


_DAMAGE = {
    "data file truncated": lambda f: os.truncate(_largest(f / "state/ocdbt.process_0/d"), 100),
    "data file empty": lambda f: os.truncate(_largest(f / "state/ocdbt.process_0/d"), 0),
    "data file deleted": lambda f: _largest(f / "state/ocdbt.process_0/d").unlink(),
    "bit flipped in data": lambda f: _flip(_largest(f / "state/ocdbt.process_0/d"), 0.5),
    "manifest deleted": lambda f: (f / "state/manifest.ocdbt").unlink(),
    "manifest bit flipped": lambda f: _flip(f / "state/manifest.ocdbt", 0.6),
    "tree metadata cut": lambda f: os.truncate(f / "state/_METADATA", 50),
    "tree metadata deleted": lambda f: (f / "state/_METADATA").unlink(),
    "state folder gone": lambda f: (f / "state").rename(f.parent / "elsewhere"),
    "metadata missing": lambda f: (f / "metadata/metadata").unlink(),
    "metadata cut": lambda f: os.truncate(f / "metadata/metadata", 60),
    "position edited": lambda f: _edit(f / "metadata/metadata", '"position": 9', '"position": 8'),
    "digest edited": lambda f: _edit(f / "metadata/metadata", tree_digest(_state(9)), "0" * 64),
}


@pytest.fixture
def abandoned_reads():
    """Orbax drops the other reads when one fails; Python complains when it collects them: here, and not later."""
    gc.freeze()  # only what the test makes is looked through: all programs of a session would take seconds each time
    yield
    with warnings_module.catch_warnings():
        warnings_module.simplefilter("ignore")
        gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, warnings, damage):
    _saved(tmp_path, 6, 9).close()
    _DAMAGE[damage](tmp_path / "9")
    checkpointer = Checkpointer(str(tmp_path), keep_last=9)
    restored = checkpointer.restore_latest(_abstract(_state(0)))
    assert (restored.step, restored.metadata["data"]["position"]) == (6, 6)
    assert tree_digest(restored.state) == tree_digest(_state(6))
    assert f"damaged checkpoint {tmp_path}/9 was moved to {tmp_path}/damaged-9; it can be deleted" in warnings.text
    reason = re.search(rf"checkpoint {tmp_path}/9 is damaged \((.+)\): trying the one before", warnings.text)
    assert reason
    assert 10 < len(reason[1]) < 300
    assert (tmp_path / "damaged-9").is_dir()
    assert checkpointer.latest_step() == 6
    assert checkpointer.save(9, _state(9), {})  # the step can be saved again
    checkpointer.close()
    assert Checkpointer(str(tmp_path)).restore_latest(_abstract(_state(0))).step == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.usefixtures("abandoned_reads")
def test_whatever_file_is_damaged_the_state_is_right(tmp_path):
    _saved(tmp_path, 6, 9).close()
    shutil.copytree(tmp_path / "9", tmp_path / "intact")
    files = sorted(path.relative_to(tmp_path / "9") for path in (tmp_path / "9").rglob("*") if path.is_file())
    rng, seen = random.Random(0), []
    for name in files:
        path = tmp_path / "9" / name
        _flip(path, rng.random()) if rng.random() < 0.5 else os.truncate(path, rng.randrange(path.stat().st_size))
        restored = Checkpointer(str(tmp_path)).restore_latest(_abstract(_state(0)))
        assert restored.metadata == {"data": {"position": restored.step}}, name
        assert tree_digest(restored.state) == tree_digest(_state(restored.step)), name
        seen.append(restored.step)
        for folder in (tmp_path / "9", tmp_path / "damaged-9"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "intact", tmp_path / "9")
    assert set(seen) == {6, 9}  # some files, such as Orbax's own notes, are not needed


@pytest.mark.process
def test_data_that_reads_well_but_differs_is_caught_by_the_digest(tmp_path, warnings):
    # The arrays of step 6 under the name of step 9: every file is in order, only the digest can tell.
    _saved(tmp_path, 6, 9).close()
    (tmp_path / "9" / "state").rename(tmp_path / "elsewhere")
    subprocess.run(["cp", "-r", tmp_path / "6" / "state", tmp_path / "9" / "state"], check=True)
    assert Checkpointer(str(tmp_path)).restore_latest(_abstract(_state(0))).step == 6
    assert "the arrays are not those that were saved (digest " in warnings.text


def test_two_damaged_ones_and_a_name_that_is_taken(tmp_path):
    _saved(tmp_path, 1, 2, 3).close()
    (tmp_path / "damaged-3").mkdir()
    for step in "23":
        (tmp_path / step / "metadata" / "metadata").unlink()
    assert Checkpointer(str(tmp_path)).restore_latest(_abstract(_state(0))).step == 1
    assert {path.name for path in tmp_path.iterdir()} >= {"1", "damaged-2", "damaged-3", "damaged-3.2"}


def test_all_damaged_is_an_error_and_moves_nothing(tmp_path):
    _saved(tmp_path, 1, 2).close()
    for step in "12":
        (tmp_path / step / "metadata" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="all are damaged") as error:
        Checkpointer(str(tmp_path)).restore_latest(_abstract(_state(0)))
    assert f"{tmp_path}/2: metadata/metadata is missing" in str(error.value)
    assert f"{tmp_path}/1: metadata/metadata is missing" in str(error.value)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"1", "2"}


def test_another_model_is_an_error_not_a_fallback(tmp_path):
    _saved(tmp_path, 1, 2).close()
    other = _state(0, width=16)
    del other["mask"]
    other["extra"] = jnp.zeros(2)
    with pytest.raises(StructureMismatchError) as error:
        Checkpointer(str(tmp_path)).restore_latest(_abstract(other))
    message = str(error.value)
    assert f"checkpoint {tmp_path}/2 holds another model or optimizer than this run:" in message
    assert "extra: not in the checkpoint, this run has float32[2]" in message
    assert "mask: the checkpoint has bool[3], this run does not" in message
    assert "optimizer/0/mu/kernel: the checkpoint has float32[4, 8], this run float32[4, 16]" in message
    assert (tmp_path / "2").exists()
    half = _abstract(_state(0)) | {"half": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=_state(0)["half"].sharding)}
    with pytest.raises(StructureMismatchError, match=r"half: the checkpoint has bfloat16\[5\], this run float32\[5\]"):
        Checkpointer(str(tmp_path)).restore_latest(half)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be at least 1"):
        Checkpointer(str(tmp_path), keep_last=0)
    checkpointer = Checkpointer(str(tmp_path))
    with pytest.raises(TypeError, match="metadata of a checkpoint must be JSON"):
        checkpointer.save(1, _state(1), {"array": jnp.zeros(2)})
    with pytest.raises(ValueError, match="no leaf has a size above zero"):
        checkpointer.save(1, {"x": jnp.zeros(0)}, {})
    checkpointer.save(1, {"x": jnp.zeros(2)}, {})
    with pytest.raises(ValueError, match="'x' has no sharding"):
        checkpointer.restore_latest({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})
    checkpointer.close()


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot be written to {tmp_path}/file/checkpoints .*choose another workdir"):
        Checkpointer(str(tmp_path / "file" / "checkpoints"))


def _save_and_wait(checkpointer: Checkpointer) -> None:
    checkpointer.save(2, _state(2), {})
    checkpointer.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads complain too
def test_a_save_that_fails_in_the_background_is_reported(tmp_path, monkeypatch):
    checkpointer = _saved(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gpath.PosixGPath, "write_text", full)
        with pytest.raises(CheckpointError, match=f"could not be written to {tmp_path}: .*No space left"):
            _save_and_wait(checkpointer)
        with pytest.raises(CheckpointError, match="No space left"):  # a loop cannot miss it
            checkpointer.save(3, _state(3), {})
    after = Checkpointer(str(tmp_path))
    assert after.latest_step() == 1
    assert tree_digest(after.restore_latest(_abstract(_state(0))).state) == tree_digest(_state(1))


_LOOP = """
import sys, jax, jax.numpy as jnp
from smallr.core.errors import UserError
from smallr.training.checkpoints import Checkpointer
def state(step):  # content is a function of the step
    return {f"w{i}": jnp.full((256, 512), step * 1000 + i, jnp.float32) for i in range(8)} | {"step": jnp.int32(step)}
checkpointer = Checkpointer(sys.argv[1], keep_last=2)
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
restored = checkpointer.restore_latest(abstract)
step = 0
if restored is not None:
    step = restored.step
    assert restored.metadata == {"position": step * 7}, restored.metadata
    for name, leaf in state(step).items():
        assert bool((restored.state[name] == leaf).all()), (name, step)
print("restored", step, flush=True)
while True:
    step += 1
    checkpointer.save(step, state(step), {"position": step * 7})
    print("complete", step - 1, flush=True)  # save() has waited for the one before
"""


@pytest.mark.process
@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_consistent_newest_checkpoint(tmp_path, forks):
    announced, inside = 0, 0
    random_moments = random.Random(0)
    for attempt in range(4):
        process = forks.start(["-c", _LOOP, str(tmp_path)])
        first = int(re.search(r"^restored (\d+)\n", process.wait_for("restored "), re.MULTILINE)[1])
        assert first >= announced, f"lost a complete checkpoint: {first} < {announced}"
        if attempt == 3:
            process.send_signal(signal.SIGKILL)
            break
        process.wait_for(f"complete {first + 1}\n")
        if attempt % 2:
            time.sleep(random_moments.uniform(0, 0.3))
        else:
            _wait_for_a_save_under_way(tmp_path)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        announced = max(map(int, re.findall(r"^complete (\d+)$", process.printed(), re.MULTILINE)))
        inside += any("tmp" in path.name for path in tmp_path.iterdir())
    assert inside >= 1, "no kill hit a save: the test has tested nothing"
    checkpointer = Checkpointer(str(tmp_path))
    checkpointer.save(announced + 1000, {"x": jnp.zeros(1)}, {})
    checkpointer.close()
    assert all(path.name.isdigit() for path in tmp_path.iterdir() if path.is_dir()), "left-over temporary folders"


def _wait_for_a_save_under_way(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if any("tmp" in path.name for path in folder.iterdir()):
            return


_MESH = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from smallr.core.sharding import make_mesh
from smallr.core.errors import UserError
from smallr.training.checkpoints import Checkpointer
from smallr.training.digest import tree_digest
mesh = make_mesh(2, 2, 2)
specs = {"w": P("fsdp", "tensor"), "m": P(("data", "fsdp", "tensor")), "b": P(), "step": P(), "rng": P()}
like = {"w": ((16, 8), jnp.float32), "m": ((8, 3), jnp.bfloat16), "b": ((5,), jnp.int32), "step": ((), jnp.int32)}
like = {k: jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, specs[k])) for k, (s, d) in like.items()}
key = jax.random.key(0)
like["rng"] = jax.ShapeDtypeStruct((), key.dtype, sharding=NamedSharding(mesh, P()))
checkpointer = Checkpointer(sys.argv[1])
restored = checkpointer.restore_latest(like)
assert restored.step == 1
for name, leaf in restored.state.items():
    assert leaf.sharding.is_equivalent_to(like[name].sharding, leaf.ndim), name
assert restored.state["w"].addressable_shards[0].data.shape == (8, 4)
print(tree_digest(restored.state))
state = jax.tree.map(lambda x: x * 3 if x.dtype == jnp.float32 else x, restored.state)
checkpointer.save(2, state, {})
checkpointer.close()
print(tree_digest(state))
"""


@pytest.mark.process
def test_one_device_to_eight_and_back_is_bit_exact(tmp_path, eight_devices):
    state = {
        "w": jax.random.normal(jax.random.key(1), (16, 8)),
        "m": jax.random.normal(jax.random.key(2), (8, 3)).astype(jnp.bfloat16),
        "b": jnp.arange(5, dtype=jnp.int32),
        "step": jnp.int32(12),
        "rng": jax.random.key(3),
    }
    checkpointer = Checkpointer(str(tmp_path))
    checkpointer.save(1, state, {})
    checkpointer.close()
    first, second = eight_devices(_MESH, str(tmp_path)).stdout.split()
    assert first == tree_digest(state)
    restored = Checkpointer(str(tmp_path)).restore_latest(_abstract(state))
    assert restored.step == 2
    assert tree_digest(restored.state) == second
    np.testing.assert_array_equal(restored.state["w"], state["w"] * 3)
    np.testing.assert_array_equal(restored.state["m"], state["m"])


_TWO = """
import os, sys, jax, jax.numpy as jnp, numpy as np
index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from smallr.core.sharding import make_mesh
from smallr.core.errors import UserError
from smallr.training.checkpoints import Checkpointer
from smallr.training.digest import tree_digest
mesh = make_mesh(1, 4, 1)
def place(x, spec):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda i: x[i])
def state(step):
    return {"w": place(np.arange(16384, dtype=np.float32).reshape(64, 256) + step, P("fsdp")), "step": place(np.int32(step), P())}
checkpointer = Checkpointer(folder)
for step in (1, 2):
    checkpointer.save(step, state(step), {"position": step})
checkpointer.wait()
if index == 0:  # damage what process 1 wrote
    data = os.path.join(folder, "2", "state", "ocdbt.process_1", "d")
    for name in os.listdir(data):
        os.truncate(os.path.join(data, name), 10)
multihost_utils.sync_global_devices("damaged")
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
restored = checkpointer.restore_latest(like)
print("step", restored.step, tree_digest(restored.state), flush=True)
checkpointer.save(2, state(2), {"position": 2})
checkpointer.close()
"""


@pytest.mark.process
def test_two_processes_save_fall_back_and_agree(tmp_path, forks):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    outputs = forks.run([["-c", _TWO, str(index), port, str(tmp_path)] for index in range(2)], [environment(2)] * 2)
    w = np.arange(16384, dtype=np.float32).reshape(64, 256)
    expected = ["step", "1", tree_digest({"w": jnp.asarray(w + 1), "step": jnp.int32(1)})]
    lines = [[line.split() for line in out.splitlines() if line.startswith("step ")] for out in outputs]
    assert lines == [[expected], [expected]]
    like = {"w": jnp.asarray(w), "step": jnp.int32(0)}
    restored = Checkpointer(str(tmp_path)).restore_latest(like)  # one process restores what two have saved
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state["w"], w + 2)
