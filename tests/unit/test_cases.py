"""Every public report that was rebuilt, and the tests that are about it: none loses its test unnoticed.

What NVIDIA's toolkit and the distributions' programs write is done by NVIDIA's own program and by the doubles of
tests/tools/platforms; `tests/bed/README.md` says what each of them writes back.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_OTHERS, _LIVES = "node/test_others.py", "node/test_lives.py"
_REPORTED = "test_a_reported_configuration_is_judged_as_the_daemon_does_and_nobody_loses_anything"
_CHANGES = "containerd/test_changes.py"

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "01": ("NVIDIA/aicr#1688", {"containerd/test_cases.py": _REPORTED}),
    "03": (
        "nutanix-cloud-native/cluster-api-runtime-extensions-nutanix#1613",
        {
            "containerd/test_cases.py": _REPORTED,
            _CHANGES: "test_a_toolkit_with_another_schema_than_the_root_is_corrected_or_goes",
        },
    ),
    "04": ("containerd/containerd#12612", {"containerd/test_cases.py": _REPORTED}),
    "06": ("containerd/runwasi#1002", {"containerd/test_cases.py": _REPORTED}),
    "08": ("k0sproject/k0s#7689", {_OTHERS: "test_a_snippet_that_k0s_would_not_start_with_is_not_made_live"}),
    "09": ("kata-containers/kata-containers#13176", {"containerd/test_cases.py": _REPORTED}),
    "10": (
        "flatcar/scripts#4150",
        {
            "unit/containerd/test_registration.py": (
                "test_flatcar_whose_image_imports_a_folder_gets_one_file_there_and_stays_fresh"
            )
        },
    ),
    "11": ("k3s-io/docs#566", {_OTHERS: "test_a_template_that_would_not_render_is_not_made_live"}),
    "13": (
        "k0sproject/k0s#6547",
        {
            "unit/containerd/test_registration.py": (
                "test_on_k0s_ours_is_a_file_of_its_own_beside_the_toolkits_whole_cri"
            )
        },
    ),
    "14": (
        "NVIDIA/nvidia-container-toolkit#1040",
        {
            _OTHERS: "test_a_life_among_others_ends_with_the_node_as_it_would_be_without_us",
            _LIVES: "test_a_whole_life_among_others",
        },
    ),
    "16": ("google/gvisor#13985", {"containerd/test_cases.py": _REPORTED}),
    "17": ("containerd/containerd#14121", {"containerd/test_cases.py": _REPORTED}),
    "17b": ("moby/moby#53564", {"containerd/test_cases.py": _REPORTED}),
    "19": ("NVIDIA/nvidia-container-toolkit#410", {"containerd/test_cases.py": _REPORTED}),
    "20": ("kubernetes/kubernetes#107892", {"containerd/test_cases.py": _REPORTED}),
    "21": (
        "sassoftware/viya4-iac-k8s#187",
        {
            _OTHERS: "test_a_downgraded_containerd_that_our_drop_in_keeps_down_is_healed",
            _LIVES: "test_a_whole_life_among_others",
        },
    ),
    "22": ("k3s-io/k3s#13680", {"containerd/test_cases.py": _REPORTED}),
    "23": ("containerd/nydus-snapshotter#796", {"containerd/test_cases.py": _REPORTED}),
    "27": (
        "nutanix-cloud-native/cluster-api-runtime-extensions-nutanix#364",
        {
            "containerd/test_cases.py": _REPORTED,
            _OTHERS: "test_a_node_that_a_restart_would_kill_is_not_restarted",
        },
    ),
    "28": (
        "NVIDIA/nvidia-container-toolkit#1260",
        {
            _CHANGES: "test_a_toolkit_that_comes_after_us_copies_our_handler_and_that_is_ours",
            _LIVES: "test_a_whole_life_among_others",
        },
    ),
    "29": (
        "nutanix-cloud-native/cluster-api-runtime-extensions-nutanix#1613",
        {
            _CHANGES: "test_a_root_written_anew_in_another_schema_is_followed",
            _LIVES: "test_a_whole_life_among_others",
        },
    ),
    "30": (
        "kata-containers/kata-containers#11072",
        {_OTHERS: "test_a_life_among_others_ends_with_the_node_as_it_would_be_without_us"},
    ),
    "old-template-of-k3s": (
        "containerd/runwasi#889",
        {
            "unit/containerd/test_registration.py": (
                "test_k3s_gets_the_table_behind_its_base_in_the_template_that_it_uses"
            )
        },
    ),
    "two-containerds": (
        "canonical/k8s-snap#1991",
        {
            "unit/plan/test_neighbours.py": (
                "test_another_containerd_that_reads_what_we_write_is_named_by_plan_and_doctor"
            )
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reported_case_has_its_tests(case: str) -> None:
    _, tests = CASES[case]
    for path, name in tests.items():
        tree = ast.parse((TESTS / path).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_each_configuration_that_is_tried_over_a_daemon_belongs_to_a_report() -> None:
    tree = ast.parse((TESTS / "containerd/test_cases.py").read_text())
    named = {
        str(key.value).partition("-")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "CASES"
        and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
    assert named == {case for case, (_, tests) in CASES.items() if "containerd/test_cases.py" in tests}
