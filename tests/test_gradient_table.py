"""The gradient table finds every planted fault, and its reference is a derivative."""

import json
from itertools import product
from types import SimpleNamespace

import gradient_generative
import gradient_reference
import gradient_table
import jax
import numpy as np
import pytest
from gradient_cases import (
    CONTENTS,
    CUTS,
    GENERATIVE,
    MODELS,
    draw_encoder,
    list_cases,
    list_meshes,
    list_process_cases,
    make_case,
)
from gradient_reference import Text, TextPair
from gradient_table import RoundedRow, measure

CUT = make_case((2, 2, 2), (4, "streaming"), (True, 2, 61))
GENERATIVE_CUT = make_case((2, 2, 2), (4, "dense"), (True, 2, 61), model=GENERATIVE)


def check_derivative(params, true, find_loss):
    """Central differences in float64, of the largest number of each parameter's gradient."""
    for leaf, derivative in zip(jax.tree.leaves(params), jax.tree.leaves(true), strict=True):
        index = np.unravel_index(np.argmax(np.abs(derivative)), derivative.shape)
        step = 1e-5
        leaf[index] += step
        above = find_loss()
        leaf[index] -= 2 * step
        below = find_loss()
        leaf[index] += step
        np.testing.assert_allclose(
            (above - below) / (2 * step), derivative[index], rtol=1e-5, atol=1e-9
        )


def draw_in_float64(model):
    return gradient_reference.map_tree(lambda a: a.astype(np.float64), draw_encoder(model))


def test_the_reference_of_the_generative_loss_is_its_derivative():
    random = np.random.default_rng(0)
    params, settings = draw_in_float64(GENERATIVE), MODELS[GENERATIVE]
    texts = [Text(random.integers(1, 300, length), "") for length in (2, 7, 4)]
    truth = gradient_generative.find_truth(params, settings, texts)
    check_derivative(
        params,
        truth.encoder,
        lambda: gradient_generative.find_truth(params, settings, texts).loss,
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_reference_is_the_derivative_of_its_loss(model):
    random = np.random.default_rng(0)
    params, settings = draw_in_float64(model), MODELS[model]

    def draw(length):
        return Text(random.integers(1, 300, length), str(random.integers(0, 6)))

    pairs = [TextPair(draw(3), draw(5), (draw(4),) * (n % 2)) for n in range(5)]
    assert not gradient_reference.find_counted(pairs).all()
    truth = gradient_reference.find_truth(params, settings, 2.0, pairs)

    def find_loss(log_scale=2.0):
        return gradient_reference.find_truth(params, settings, log_scale, pairs).loss

    slope = (find_loss(2.0 + 1e-5) - find_loss(2.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, truth.log_scale, rtol=1e-6)
    check_derivative(params, truth.encoder, find_loss)


@pytest.mark.parametrize(
    "case",
    [
        CUT,
        make_case((8, 1, 1), (1, "dense"), (False, 0, 64)),
        make_case((2, 2, 1), (2, "dense"), (True, 0, 61), model="bert, mean"),
        make_case((1, 1, 2), (2, "streaming"), (True, 2, 61), model="bert, first"),
        make_case((1, 2, 2), (2, "dense"), (True, 0, 61), model="gpt, lora"),
        make_case((2, 1, 1), (2, "streaming"), (True, 2, 61), model="bert, hf"),
    ],
)
def test_a_batch_that_is_cut_is_exact(case):
    rows = list(measure(case))
    assert [row.scale for row in rows] == list(gradient_table.SCALES)
    assert all(row.exact for row in rows)


@pytest.mark.parametrize("plant", ["gather", "temperature", "labels"])
def test_a_planted_fault_shows(plant):
    for row in measure(CUT, plant):
        assert not row.exact
        assert gradient_table.show(row).endswith("WRONG")
        if plant == "gather":  # the temperature and the loss do not notice
            assert abs(row.encoder - 1) > 0.1
            assert abs(row.temperature - 1) < 1e-5
            assert abs(row.loss - 1) < 1e-5
        if plant == "temperature":  # nor does anything else
            assert abs(row.temperature - CUT.chunks) < 1e-4
            assert abs(row.encoder - 1) < 1e-5
        if plant == "labels":
            assert row.cosine < 0.99
            assert abs(row.loss) > 0.1
    assert all(row.exact for row in measure(CUT))  # and is gone afterwards


def test_a_generative_batch_that_is_cut_is_exact():
    (row,) = measure(GENERATIVE_CUT)
    assert row.exact
    assert row.temperature == 1  # it has none, so its gradient must be 0


def test_a_target_across_a_border_shows():
    (row,) = measure(GENERATIVE_CUT, "borders")
    assert gradient_table.show(row).endswith("WRONG")
    assert row.worst > 0.1
    (row,) = measure(GENERATIVE_CUT)
    assert row.exact


def test_several_processes_are_exact():
    options = SimpleNamespace(quick=True, plant="none", model=["gpt"])
    rows = list(gradient_table.measure_processes(2, options))
    assert [row.case for row in rows[::2]] == list_process_cases(2, quick=True)
    assert all(row.exact for row in rows)


def test_the_table_covers_what_it_says():
    meshes = [mesh for devices in (1, 2, 4, 8) for mesh in list_meshes(devices)]
    assert len(meshes) == 1 + 3 + 6 + 10

    def describe(cases):
        return [
            (c.mesh, (c.chunks, c.form), (c.pack, c.negatives, c.pairs))
            for c in cases
            if c.model == "gpt"
        ]

    table = describe(list_cases(quick=False))
    assert {(mesh, cut) for mesh, cut, _ in table} == set(product(meshes, CUTS))
    assert {(mesh, content) for mesh, _, content in table} == set(product(meshes, CONTENTS))
    assert {(cut, content) for _, cut, content in table} == set(product(CUTS, CONTENTS))
    quick = describe(list_cases(quick=True))
    assert len(quick) == len(CUTS) == len(CONTENTS)
    assert {cut for _, cut, _ in quick} == set(CUTS)
    assert {content for _, _, content in quick} == set(CONTENTS)
    assert set(list_cases(quick=True)) <= set(list_cases(quick=False))
    assert {c.model for c in list_cases(quick=True)} == set(MODELS)
    for kind in ("bert", "gpt, lora", ("gpt, hf", "bert, hf")):
        cases = [case for case in list_cases(quick=False) if case.model.startswith(kind)]
        assert {case.mesh for case in cases} == set(meshes)
    cuts = {(c.mesh, c.chunks) for c in list_cases(quick=False) if c.model == GENERATIVE}
    assert cuts == set(product(meshes, (1, 2, 4, 8)))
    for processes in (2, 4):
        cases = list_process_cases(processes, quick=False)
        assert {case.mesh for case in cases} == set(list_meshes(2 * processes))


@pytest.mark.parametrize("plant", ["none", "labels"])
def test_the_command_fails_where_a_line_is_wrong(plant, monkeypatch, tmp_path, capsys):
    case = make_case((2, 1, 1), (2, "dense"), (True, 0, 61))
    rounded = RoundedRow(
        case=case,
        encoder_cut=0.001,
        temperature_cut=0.0,
        encoder_truth=0.01,
        temperature_truth=0.03 if plant == "labels" else 0.001,
    )
    monkeypatch.setattr(gradient_table, "list_cases", lambda quick: [case])
    monkeypatch.setattr(gradient_table, "measure_processes", lambda *_: iter(()))
    monkeypatch.setattr(gradient_table, "compare_bfloat16", lambda _: iter([rounded]))
    options = SimpleNamespace(
        quick=True, plant=plant, json=tmp_path / "rows.json", jobs=1, model=["gpt"]
    )
    wrong = gradient_table.print_table(options)
    printed = capsys.readouterr().out
    assert wrong == (0 if plant == "none" else 3)
    assert printed.count("exact\n") == 3 - wrong
    assert printed.count("WRONG\n") == wrong
    assert f"3 lines, {wrong} wrong" in printed
    rows = json.loads(options.json.read_text())
    assert [row["case"]["chunks"] for row in rows] == [2, 2, 2]
