"""What is told of the machine, of this one and of others' files."""

import json
import os

from octavo.core.system import cgroups
from octavo.core.system import machine as module
from octavo.core.system.machine import machine

CASCADE_LAKE = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6248  CPU @ 2.50GHz
flags\t\t: fpu sse4_2 fma avx f16c avx2 avx512f avx512bw avx512vl avx512_vnni

processor\t: 1
model name\t: Intel(R) Xeon(R) Gold 6248  CPU @ 2.50GHz
"""

GRAVITON = """\
processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_this_machine_is_told_in_plain_values(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    monkeypatch.setenv("MKL_NUM_THREADS", "many")
    found = machine({"onnx": 2})
    facts = json.loads(json.dumps(found.to_json()))
    assert facts["processor"]
    assert 0 < facts["usable_cores"] <= facts["logical_cores"] == os.cpu_count()
    assert facts["threads"]["OMP_NUM_THREADS"] == 3
    assert facts["threads"]["onnx"] == 2
    assert "MKL_NUM_THREADS" not in facts["threads"]
    assert facts["memory_bytes"] > 2**28
    assert set(facts) == set(found.__dataclass_fields__)


def test_instruction_sets_and_names_of_other_processors(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_BOARD", tmp_path / "none")
    for text, name, sets in (
        (
            CASCADE_LAKE,
            "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz",
            "avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni",
        ),
        (
            GRAVITON,
            "Arm implementer 0x41, part 0xd40",
            "i8mm bf16 sve neon dotprod fp16",
        ),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        module._cpuinfo.cache_clear()
        found = machine()
        assert found.processor == name
        assert found.instruction_sets == tuple(sets.split())
    module._cpuinfo.cache_clear()


def test_nothing_is_known_and_nothing_raises(monkeypatch, tmp_path):
    for name in ("_CPUINFO", "_CPUS", "_BOARD"):
        monkeypatch.setattr(module, name, tmp_path / "none")
    for name in ("_ROOT", "_MINE"):
        monkeypatch.setattr(cgroups, name, tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", _unknown)
    monkeypatch.setattr(os, "getloadavg", _unknown)
    monkeypatch.setattr(os, "sched_getaffinity", _unknown)
    module._cpuinfo.cache_clear()
    found = machine()
    module._cpuinfo.cache_clear()
    assert found.processor
    assert found.usable_cores == os.cpu_count()
    assert found.physical_cores is None
    assert found.governor is None
    assert found.memory_bytes is None
    assert found.memory_limit_bytes is None
    assert found.load_average == ()


def _unknown(*_):
    raise OSError


def test_a_mac_tells_by_another_way(monkeypatch, tmp_path):
    told = {
        "machdep.cpu.brand_string": "Apple M2 Pro",
        "hw.physicalcpu": "10",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "1",
        "hw.optional.arm.FEAT_SME": "0",
    }
    for name in ("_CPUINFO", "_CPUS"):
        monkeypatch.setattr(module, name, tmp_path / "none")
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(module, "_apple", lambda: told)
    module._cpuinfo.cache_clear()
    found = machine()
    module._cpuinfo.cache_clear()
    assert found.processor == "Apple M2 Pro"
    assert found.physical_cores == 10
    assert found.instruction_sets == ("i8mm", "dotprod")


def test_the_tightest_group_limits(monkeypatch, tmp_path):
    inner = tmp_path / "tree" / "slice" / "pod"
    inner.mkdir(parents=True)
    (tmp_path / "mine").write_text("0::/slice/pod\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "tree")
    monkeypatch.setattr(cgroups, "_MINE", tmp_path / "mine")
    assert cgroups.cpu_quota() == 1.5
    assert cgroups.memory_limit(2**40) == 2**30
    assert cgroups.memory_limit(2**29) is None


def test_the_first_version_of_groups_in_a_container(monkeypatch, tmp_path):
    """The path that a process is told is the host's; the tree begins at the container."""
    (tmp_path / "mine").write_text("4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n")
    folder = tmp_path / "tree" / "cpu,cpuacct"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("50000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    memory = tmp_path / "tree" / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "tree")
    monkeypatch.setattr(cgroups, "_MINE", tmp_path / "mine")
    assert cgroups.cpu_quota() == 0.5
    assert cgroups.memory_limit(2**40) is None
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroups.cpu_quota() is None
