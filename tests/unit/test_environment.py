"""apex: NVIDIA's is accepted, PyPI's unrelated one and a stray folder are refused; and what `megagpt env` shows."""

from pathlib import Path

import pytest

from megagpt import cli, environment
from megagpt.errors import ConfigError


def add_package(site: Path, module: str, parts: list[str], distribution: str | None, version: str = "0.1") -> None:
    """A fake installed package: its folders, and the metadata that pip would leave."""
    for part in ["", *parts]:
        (site / module / part).mkdir(parents=True)
        (site / module / part / "__init__.py").write_text("raise AssertionError('imported')")
    if distribution:
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that comes first on sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


NVIDIA_PARTS = ["multi_tensor_apply", "optimizers", "normalization", "contrib"]


def test_nvidias_apex_is_accepted_and_not_imported(site: Path) -> None:
    add_package(site, "apex", NVIDIA_PARTS, "apex")
    environment.check_apex()
    assert environment.optional_packages()[0] == ("apex", True, "0.1, without CUDA kernels")


def test_nvidias_apex_with_kernels(site: Path) -> None:
    add_package(site, "apex", NVIDIA_PARTS, "apex")
    (site / "amp_C.py").write_text("")
    assert environment.optional_packages()[0].state == "0.1, with CUDA kernels"


def test_pypis_apex_is_refused(site: Path) -> None:
    add_package(site, "apex", ["lib", "templates"], "apex", "0.9.10.dev0")
    with pytest.raises(
        ConfigError, match=r"apex 0\.9\.10\.dev0 in .* is not NVIDIA's apex.*pip uninstall apex.*docs/install\.md"
    ):
        environment.check_apex()
    assert environment.optional_packages()[0].state == f"not NVIDIA's: {site / 'apex'}"


def test_a_stray_folder_named_apex_is_refused(site: Path) -> None:
    (site / "apex").mkdir()
    with pytest.raises(ConfigError, match=r"the folder .*apex is not NVIDIA's apex.*remove or rename it"):
        environment.check_apex()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without any login."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_wandb_online_without_a_login_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r'log\.wandb = "online" needs a .* login, and there is none: run'):
        environment.check_wandb_login()


def test_every_wandb_login_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "k" * 40)
        environment.check_wandb_login()
    netrc = "machine api.wandb.ai\n  login user\n  password secret\n"
    for place, text in ((".netrc", netrc), ("_netrc", netrc), (".config/wandb/settings", "[default]\napi_key = k\n")):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_text(text)
        environment.check_wandb_login()
        (home / place).unlink()
    (home / "elsewhere").write_text(netrc)
    monkeypatch.setenv("NETRC", str(home / "elsewhere"))
    environment.check_wandb_login()


def test_without_apex_nothing_is_wrong(site: Path) -> None:
    if environment.optional_packages()[0].installed:
        pytest.skip("apex is installed here")
    environment.check_apex()


def test_optional_packages_are_found_by_their_metadata(site: Path) -> None:
    add_package(site, "transformer_engine", [], "transformer-engine", "2.8.0")
    add_package(site, "flash_attn", [], None)
    states = {package.name: package.state for package in environment.optional_packages()}
    assert states["Transformer Engine"] == "2.8.0"
    assert states["flash-attn"] == "unknown version"


def test_env_prints_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    for name in ("megagpt", "torch", "deepspeed", "megatron-core", "devices", "apex", "Transformer Engine"):
        assert f"\n{name} " in f"\n{printed}"
    assert "not installed\n" not in printed


def test_env_reports_first_and_then_refuses_pypis_apex(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_package(site, "apex", ["lib"], "apex")
    assert cli.main(["env"]) == 2
    captured = capsys.readouterr()
    assert "apex                 not NVIDIA's" in captured.out
    assert captured.err.startswith("error: apex 0.1 in ")


def test_env_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--all"]) == 2
    assert "megagpt env takes no arguments, but got --all" in capsys.readouterr().err


def test_a_megatron_core_that_needs_triton_is_refused_without_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda name: "0.19.2" if name == "megatron-core" else None)
    monkeypatch.setattr(environment, "_module_places", lambda name: [])
    with pytest.raises(ConfigError, match=r"megatron-core 0\.19\.2 imports triton.*pip install triton.*==0\.16\.1"):
        environment.check_megatron()
    monkeypatch.setattr(environment, "_module_places", lambda name: [site])
    environment.check_megatron()


def test_a_megatron_core_without_triton_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda name: "0.16.1")
    monkeypatch.setattr(environment, "_module_places", lambda name: [])
    environment.check_megatron()


def test_an_untested_version_is_looked_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tested versions are not: looking takes seconds."""
    from megagpt.parallel import upstream_check

    monkeypatch.setattr(upstream_check, "missing_upstream", lambda: ["megatron-core 0.20.0 has no x", "and no y"])
    environment.check_upstream()
    installed = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: "0.20.0" if name == "megatron-core" else installed(name))
    monkeypatch.setattr(environment, "check_megatron", lambda: None)
    with pytest.raises(ConfigError) as caught:
        environment.check_upstream()
    assert caught.value.problems == ["megatron-core 0.20.0 has no x", "and no y"]
    assert cli.main(["env"]) == 2
    captured = capsys.readouterr()
    assert "megatron-core        0.20.0 (the tests pass with 0.16.1 and 0.19.2)" in captured.out
    assert "error: megatron-core 0.20.0 has no x\nerror: and no y" in captured.err
    monkeypatch.setattr(upstream_check, "missing_upstream", list)
    assert cli.main(["env"]) == 0
