"""Groups with a memory limit on file systems that look like cgroups of version 1 and 2."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from smallr.evals.isolation import cgroups, sandbox

FILES = {
    2: ("cgroup.procs", "memory.max", "memory.swap.max"),
    1: ("cgroup.procs", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
}
OWN = {2: "0::/user.slice/me\n", 1: "12:cpu:/x\n7:hugetlb,memory:/user.slice/me\n0::/\n"}


@pytest.fixture
def kernel(request, tmp_path, monkeypatch):
    """A file system in which a new folder has the files of a group, if its parent hands the memory controller down."""
    version = request.param
    mount = tmp_path if version == 2 else tmp_path / "memory"
    own = mount / "user.slice" / "me"
    own.mkdir(parents=True)
    for folder in (own, mount):
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").touch()
    (tmp_path / "own").write_text(OWN[version])
    make = Path.mkdir

    def mkdir(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if self.name.startswith("smallr-") and self.parent in (own, mount):
            handed_down = version == 1 or "+memory" in (self.parent / "cgroup.subtree_control").read_text()
            for name in FILES[version] if handed_down else FILES[version][:1]:
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", lambda self: shutil.rmtree(self) if self.is_dir() else self.stat())
    monkeypatch.setattr(cgroups, "_MOUNT", tmp_path)
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "own")
    cgroups._parent.cache_clear()
    yield version, own, mount
    cgroups._parent.cache_clear()


def busy(folder: Path, monkeypatch) -> None:
    """Refuses to hand controllers down, as the kernel does where processes are in the group itself."""
    write = Path.write_text

    def write_text(self, text, *args, **kwargs):
        if self == folder / "cgroup.subtree_control":
            raise OSError(16, "Device or resource busy")
        return write(self, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write_text)


@pytest.mark.parametrize("kernel", [1, 2], indirect=True)
def test_a_group_has_the_limit_and_no_swap(kernel):
    version, own, _ = kernel
    group = cgroups.create(12345)
    assert group.parent == own
    _, limit, swap = FILES[version]
    assert (group / limit).read_text() == "12345"
    assert (group / swap).read_text() == ("0" if version == 2 else "12345")
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    assert [each.name for each in own.glob("smallr-*")] == [group.name]  # the trial is gone
    cgroups.remove(group)
    assert not list(own.glob("smallr-*"))


@pytest.mark.parametrize("kernel", [2], indirect=True)
def test_where_the_own_group_holds_processes_the_root_of_a_container_is_tried(kernel, monkeypatch):
    _, own, mount = kernel
    busy(own, monkeypatch)
    assert cgroups.create(1).parent == mount


@pytest.mark.parametrize("kernel", [2], indirect=True)
def test_where_nothing_is_handed_down_there_is_no_group_and_nothing_is_left(kernel, monkeypatch):
    _, own, mount = kernel
    busy(own, monkeypatch)
    (mount / "cgroup.procs").unlink()
    assert cgroups.create(1) is None
    assert not list(own.glob("smallr-*"))


@pytest.mark.parametrize("kernel", [1, 2], indirect=True)
def test_groups_of_killed_evaluations_are_removed_and_those_of_others_stay(kernel):
    _, own, _ = kernel
    for name in (f"smallr-{2**22 + 1}-0", f"smallr-{os.getppid()}-0", "smallr-x-0", "other"):
        (own / name).mkdir()
    group = cgroups.create(1)
    left = {each.name for each in own.iterdir() if each.is_dir()}
    assert left == {f"smallr-{os.getppid()}-0", "smallr-x-0", "other", group.name}


@pytest.mark.process
@pytest.mark.parametrize("kernel", [2], indirect=True)
def test_a_program_joins_its_group_before_it_runs(kernel, monkeypatch):
    _, own, _ = kernel
    joined = []
    monkeypatch.setattr(cgroups, "remove", lambda group: joined.append((group / "cgroup.procs").read_text()))
    outcome = sandbox.run(["-c", "print(1)"], {}, sandbox.Limits(memory_bytes=2**28), isolate=False)
    assert outcome.stdout == b"1\n"
    assert joined == ["0"]
    (group,) = own.glob("smallr-*")
    assert int((group / "memory.max").read_text()) > 2**28
