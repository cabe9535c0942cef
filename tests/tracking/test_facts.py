from __future__ import annotations

import subprocess

import pytest
import torch

from tracking import facts


@pytest.fixture
def repository(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True).stdout

    git("init")
    (tmp_path / "code.py").write_text("one = 1\n")
    git("add", "code.py")
    return tmp_path, git


def test_a_clean_repository_has_a_commit_and_no_diff(repository):
    folder, git = repository
    git("commit", "-m", "first")
    found = facts.git_facts(folder)
    assert found == facts.GitFacts(commit=git("rev-parse", "HEAD").strip(), branch="main", dirty=False, diff="", note="")


def test_a_dirty_repository_has_its_diff_and_names_untracked_files(repository):
    folder, git = repository
    git("commit", "-m", "first")
    (folder / "code.py").write_text("one = 2\n")
    (folder / "secret.txt").write_text("hidden")
    found = facts.git_facts(folder)
    assert found.dirty
    assert "-one = 1\n+one = 2\n" in found.diff
    assert "not kept: secret.txt" in found.diff and "hidden" not in found.diff


def test_a_large_diff_is_cut_and_says_so(repository):
    folder, git = repository
    git("commit", "-m", "first")
    (folder / "code.py").write_text("".join(f"line = {number}\n" for number in range(10_000)))
    found = facts.git_facts(folder, largest_diff=2000)
    assert found.diff.endswith("# cut: the diff is larger than 2000 bytes\n")
    assert 1900 < len(found.diff) < 2100


def test_a_repository_without_commits_and_a_folder_without_git_are_no_errors(repository, tmp_path_factory):
    folder, _ = repository
    found = facts.git_facts(folder)
    assert found.commit is None and found.dirty and "no commit" in found.note
    nowhere = facts.git_facts(tmp_path_factory.mktemp("plain"))
    assert nowhere.commit is None and nowhere.dirty is None and "no git repository" in nowhere.note


def test_git_missing_from_the_machine_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git could not be asked" in facts.git_facts(tmp_path).note


def test_versions_are_the_installed_ones():
    assert torch.__version__.startswith(facts.package_versions()["torch"].split("+")[0])
    assert facts.machine()["torch"] == torch.__version__
