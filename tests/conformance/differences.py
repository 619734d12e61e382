"""Tests that podman fails, each with the reason; docs/podman-differences.md tells them to people. One that it passes all the
same fails the run, so that the list stays true."""

PODMAN: dict[str, str] = {
    "test_e67_parents_are_made": "podman cp wants the directory to be there",
}
