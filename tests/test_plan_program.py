"""Programs of the TPU compiler are read correctly, and their cost equals a computation by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcpt.config import Mesh
from jaxcpt.planning.cost import Exchange, Machine, ScheduleSimulator, count_flops
from jaxcpt.planning.hlo import list_arrays, list_group, read_program
from jaxcpt.planning.topology import parse_topology
from jaxcpt.sharding import make_mesh

# A loop of 3 has a gather, which partly overlaps with a product of 7,000 cycles. One sum waits.
PROGRAM = """HloModule jit_step

%start (p.0: bf16[64,8]) -> (bf16[64,8], bf16[256,8], u32[]) {
  %p.0 = bf16[64,8]{1,0} parameter(0)
  %all-gather.1 = bf16[256,8]{1,0} all-gather(%p.0), channel_id=3, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c.1 = (bf16[64,8]{1,0}, bf16[256,8]{1,0}, u32[]) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[64,8], p.2: bf16[256,8]) -> bf16[256,8] {
  %p.1 = bf16[64,8]{1,0} parameter(0)
  %p.2 = bf16[256,8]{1,0} parameter(1)
  %all-gather.2 = bf16[256,8]{1,0} all-gather(%p.1), channel_id=3, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c.2 = bf16[256,8]{1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%slice (p.3: f32[100,10], p.4: s32[]) -> f32[1,10] {
  %p.3 = f32[100,10]{1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  ROOT %dynamic-slice.1 = f32[1,10]{1,0} dynamic-slice(%p.3, %p.4), dynamic_slice_sizes={1,10}
}

%body (w.0: (s32[], bf16[64,8], f32[100,10])) -> (s32[], bf16[64,8], f32[100,10]) {
  %w.0 = (s32[], bf16[64,8]{1,0}, f32[100,10]{1,0}) parameter(0)
  %g.1 = bf16[64,8]{1,0} get-tuple-element(%w.0), index=1
  %fusion.1 = (bf16[64,8]{1,0}, bf16[256,8]{1,0}, u32[]) fusion(%g.1), kind=kCustom, calls=%start
  %fusion.2 = bf16[64,8]{1,0:T(8,128)S(1)} fusion(%g.1), kind=kOutput, calls=%none, \
backend_config={"estimated_cycles":"7000"}
  %fusion.3 = bf16[256,8]{1,0} fusion(%fusion.1), kind=kCustom, calls=%done
  ROOT %t.1 = (s32[], bf16[64,8]{1,0}, f32[100,10]{1,0}) tuple(%w.0)
}

%condition (w.1: (s32[], bf16[64,8], f32[100,10])) -> pred[] {
  %w.1 = (s32[], bf16[64,8]{1,0}, f32[100,10]{1,0}) parameter(0)
  %bound = s32[] constant(3)
  %at = s32[] get-tuple-element(%w.1), index=0
  ROOT %lt.1 = pred[] compare(%at, %bound), direction=LT
}

ENTRY %main (a.0: (s32[], bf16[64,8], f32[100,10]), a.1: f32[100,10], a.2: s32[]) -> f32[] {
  %a.0 = (s32[], bf16[64,8]{1,0}, f32[100,10]{1,0}) parameter(0)
  %a.1 = f32[100,10]{1,0:T(8,128)} parameter(1)
  %a.2 = s32[]{:T(128)S(6)} parameter(2)
  %while.1 = (s32[], bf16[64,8]{1,0}, f32[100,10]{1,0}) while(%a.0), condition=%condition, \
body=%body, metadata={op_name="a
broken line"}
  %fusion.9 = f32[1,10]{1,0:T(8,128)} fusion(%a.1, %a.2), kind=kLoop, calls=%slice
  ROOT %all-reduce.1 = f32[]{:T(128)} all-reduce(%a.1), channel_id=9, \
replica_groups=mesh['x'=2,'y'=4] {'x'}, to_apply=%none
}
"""


def make_machine(name="v5p:2x2x2", mesh=(2, 4, 1)):
    topology = parse_topology(name)
    devices = [
        FakeChip(coords, number)
        for number in range(topology.slices)
        for coords in np.ndindex(*topology.shape)
    ]
    grid = np.array(devices, dtype=object).reshape(mesh)
    return Machine(FakeMesh(grid), topology)


class FakeChip:
    """A device with the attributes that `Machine` reads: its place in the torus."""

    def __init__(self, coords, slice_index):
        self.coords, self.slice_index = coords, slice_index


class FakeMesh:
    axis_names = ("data", "fsdp", "tensor")

    def __init__(self, devices):
        self.devices = devices


def test_a_program_is_read():
    program = read_program(PROGRAM)
    assert program.entry == "main"
    entry = program.computations["main"]
    assert list(entry) == ["a.0", "a.1", "a.2", "while.1", "fusion.9", "all-reduce.1"]
    assert program.trips(entry["while.1"]) == 3
    assert entry["fusion.9"].operands == ("a.1", "a.2")
    assert entry["all-reduce.1"].is_root
    product = program.computations["body"]["fusion.2"]
    assert product.cycles == 7000
    assert not product.arrays[0].in_hbm
    assert [a.bytes for a in list_arrays("(s32[], bf16[64,8]{1,0:T(8,128)(2,1)})")] == [4, 1024]
    # One of 100 rows is read, and one is written.
    assert program.hbm_bytes(entry["fusion.9"], entry) == 2 * 40
    with pytest.raises(ValueError, match="not an HLO program"):
        read_program("nothing")


NESTED = """HloModule jit_step

%cut (p.5: f32[100,10], p.6: s32[]) -> f32[1,10] {
  %p.5 = f32[100,10]{1,0} parameter(0)
  %p.6 = s32[] parameter(1)
  %b.1 = f32[100,10]{1,0} bitcast(%p.5)
  ROOT %dynamic-slice.2 = f32[1,10]{1,0} dynamic-slice(%b.1, %p.6), dynamic_slice_sizes={1,10}
}

%turn (p.7: f32[50,2]) -> f32[100] {
  %p.7 = f32[50,2]{1,0} parameter(0)
  ROOT %b.2 = f32[100]{0} bitcast(%p.7)
}

%outer (p.8: f32[100,10], p.9: s32[], p.10: f32[50,2], p.11: u8[64]) -> (f32[1], u8[64]) {
  %p.8 = f32[100,10]{1,0} parameter(0)
  %p.9 = s32[] parameter(1)
  %p.10 = f32[50,2]{1,0} parameter(2)
  %p.11 = u8[64]{0} parameter(3)
  %f.1 = f32[1,10]{1,0} fusion(%p.8, %p.9), kind=kLoop, calls=%cut
  %f.2 = f32[100]{0} fusion(%p.10), kind=kLoop, calls=%turn
  %c.3 = f32[1]{0} convolution(%f.1, %f.2), dim_labels=bf_io->bf
  ROOT %t.2 = (f32[1]{0}, u8[64]{0}) tuple(%c.3, %p.11)
}

ENTRY %main (a.3: f32[100,10], a.4: s32[], a.5: f32[50,2], a.6: u8[64]) -> (f32[1], u8[64]) {
  %a.3 = f32[100,10]{1,0} parameter(0)
  %a.4 = s32[]{:T(128)S(6)} parameter(1)
  %a.5 = f32[50,2]{1,0} parameter(2)
  %a.6 = u8[64]{0} parameter(3)
  ROOT %fusion.8 = (f32[1]{0}, u8[64]{0}) fusion(%a.3, %a.4, %a.5, %a.6), kind=kOutput, \
calls=%outer
}
"""


def test_bytes_are_those_that_move():
    program = read_program(NESTED)
    entry = program.computations["main"]
    # One row of a stack is read through two fusions. A transposed array counts in full, an array
    # that is returned unchanged does not count, and the result is one number.
    assert program.hbm_bytes(entry["fusion.8"], entry) == 40 + 400 + 0 + 4


@pytest.mark.parametrize(
    ("spelling", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", list(range(8))),
        ("source_target_pairs={{0,2},{2,4},{4,0},{1,3},{3,1}}, x", [0, 2, 4]),
    ],
)
def test_groups_are_read_however_they_are_spelt(spelling, group):
    text = (
        f"ENTRY %m () -> f32[] {{\n  ROOT %x = f32[4] all-reduce(%a), channel_id=1, {spelling}\n}}"
    )
    (exchange,) = read_program(text).computations["m"].values()
    assert list_group(exchange, 8) == group


def test_a_schedule_is_played_through():
    machine = make_machine()
    cost = ScheduleSimulator(read_program(PROGRAM), machine, 512, True).run()
    chip = machine.topology.chip
    assert chip.clock == 1.75e9
    # Four chips in a 2 x 2 plane whose ends are not joined have two links and two hops.
    gather = max(256 * 8 * 2 * 3 / 4 / (2 * chip.link_bandwidth), 2e-6)
    product = 7000 / chip.clock
    total = 2 * 1e-6  # between two chips, in both directions
    assert product > gather
    assert cost.exposed_seconds == pytest.approx(total)
    small = 80 / chip.hbm_bandwidth  # the fusion without cycles
    assert cost.compute_seconds == pytest.approx(3 * product + small, rel=1e-2)
    assert cost.exchanges["all-gather", "fsdp"] == Exchange(
        kind="all-gather",
        axes="fsdp",
        times=3,
        bytes=3 * 256 * 8 * 2 * 3 / 4,
        link_seconds=pytest.approx(3 * gather),
        network_seconds=0.0,
    )
    assert cost.exchanges["all-reduce", "data"].times == 1
    slow = PROGRAM.replace('"7000"', '"1750"')
    waited = ScheduleSimulator(read_program(slow), machine, 512, True).run().exposed_seconds
    assert waited == pytest.approx(total + 3 * (gather - 1e-6), rel=1e-2)


def test_exchanges_between_slices_take_the_network():
    machine = make_machine("v5p:2x2x1*2")
    chip = machine.topology.chip
    link, network = machine.time("all-reduce", 1 << 30, list(range(8)))
    # Each of a slice's four chips sends a quarter, and half of that goes to the other slice.
    assert network == pytest.approx(2 * (1 << 30) / 4 / 2 / chip.network_bandwidth)
    assert link == pytest.approx(2 * (1 << 30) * 3 / 4 / (2 * chip.link_bandwidth))
    assert machine.time("all-gather", 1 << 30, [0, 1, 2, 3])[1] == 0.0
    assert machine.time("all-gather", 1 << 30, [0, 4])[0] == 0.0


def test_flops_count_loops_kernels_and_what_is_computed_again():
    weight = jnp.ones((3, 8, 8))

    def apply(x, w):
        return jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, w)[0].sum()

    forward = 3 * 2 * 4 * 8 * 8
    x = jnp.ones((4, 8))
    assert count_flops(jax.make_jaxpr(apply)(x, weight).jaxpr, 1) == forward
    both = count_flops(jax.make_jaxpr(jax.grad(apply, argnums=(0, 1)))(x, weight).jaxpr, 1)
    assert both == 4 * forward  # forward, recomputed forward, and two backward products
    with jax.set_mesh(make_mesh(Mesh(2, 2, 2))):
        spec = jax.sharding.PartitionSpec("data")
        cut = jax.shard_map(lambda a: a @ a.T @ a, in_specs=spec, out_specs=spec)
        assert count_flops(jax.make_jaxpr(cut)(x).jaxpr, 8) == 8 * 2 * (2 * 2 * 2 * 8)


def test_a_conditional_costs_what_its_longest_branch_does():
    program = read_program(
        """HloModule jit_step

%keep (p.0: f32[8]) -> f32[8] {
  ROOT %p.0 = f32[8]{0} parameter(0)
}

%update (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p.1, %p.1)
}

ENTRY %main (a.0: pred[], a.1: f32[8]) -> f32[8] {
  %a.0 = pred[] parameter(0)
  %a.1 = f32[8]{0} parameter(1)
  ROOT %c.1 = f32[8]{0} conditional(%a.0, %a.1, %a.1), CALLED
}
""".replace("CALLED", "true_computation=%update, false_computation=%keep")
    )
    conditional = program.computations["main"]["c.1"]
    assert list(program.body(conditional)) == ["p.1", "add.1"]
    branches = conditional.text.replace("true_computation=%update, false_computation=%keep", "")
    renamed = replace(conditional, text=f"{branches}branch_computations={{%keep, %update}}")
    assert list(program.body(renamed)) == ["p.1", "add.1"]
