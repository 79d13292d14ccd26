"""`make wheelhouse`: what is carried to a machine without a network, and installed there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.stack import ROOT


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_the_wheels_are_whole_installed_without_a_network_and_named_in_a_bill_of_materials(tmp_path: Path) -> None:
    # Given a lock of one package, with its hashes; the whole one is 760 MB
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^click==[^=]*(?:\n    --hash=\S+(?: \\)?)+", locked, re.MULTILINE)
    lock, house = tmp_path / "one.lock", tmp_path / "wheelhouse"
    lock.write_text(entry.rstrip(" \\") + "\n", encoding="utf-8")

    # If the wheels are gathered
    gathered = run("make", "wheelhouse", f"LOCK={lock}", f"WHEELHOUSE={house}")
    assert gathered.returncode == 0, gathered.stderr

    # Then our own is among them, with what is no code
    (own,) = house.glob("lesion_screen-*.whl")
    names = set(zipfile.ZipFile(own).namelist())
    assert {"db/roles.sql", "worker/redis-users.acl", "model/shipped/manifest.json"} <= names
    assert any(name.startswith("db/migrations/versions/r0001") for name in names)
    assert not any(name.startswith("tests/") for name in names)

    # And the bill names what was locked, by version and hash
    bill = json.loads((house / "sbom.cdx.json").read_text(encoding="utf-8"))
    (component,) = bill["components"]
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "lesion-screen")
    assert f"pkg:pypi/click@{component['version']}" == component["purl"]
    assert {one["content"] for one in component["externalReferences"][0]["hashes"]} == set(
        re.findall(r"sha256:([0-9a-f]{64})", entry)
    )

    # And they can be installed with nothing else at hand
    assert run(sys.executable, "-m", "venv", tmp_path / "there").returncode == 0
    install = (tmp_path / "there" / "bin" / "pip", "install", "--isolated", "--no-index")
    locked_install = (*install, "--find-links", house, "--require-hashes", "-r", house / "requirements.lock")
    assert run(*locked_install).returncode == 0
    assert run(*install, "--no-deps", own).returncode == 0

    # But not if somebody has changed one on the way
    (click,) = house.glob("click-*.whl")
    with zipfile.ZipFile(click, "a") as changed:
        changed.writestr("click/more.py", "")
    refused = run(*locked_install, "--force-reinstall")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
