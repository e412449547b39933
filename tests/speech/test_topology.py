from dataclasses import replace

import numpy as np
import pytest
from speech_oracle import chain

from hemstitch.errors import MisuseError
from hemstitch.speech import Alignment, HmmState, Segment, Topology

PHONES = ("SIL", "A", "B")


def test_numbers_pdfs_phone_by_phone():
    topology = Topology.left_to_right(PHONES, num_states=2, num_silence_states=3)
    assert topology.num_pdfs == 7 and topology.phone_ids == {"SIL": 1, "A": 2, "B": 3}
    assert [topology.pdf(p, i) for p in (1, 2, 3) for i in range(len(topology.hmms[p - 1]))] == list(range(7))


def test_the_chain_topology_has_two_pdfs_in_one_state():
    topology = chain(PHONES)
    table = topology.table([(3, ()), (1, ())])
    assert topology.num_pdfs == 6 and table.offsets.tolist() == [0, 1, 2]
    assert table.enter_pdf.tolist() == [4, 0] and table.loop_pdf.tolist() == [5, 1]
    assert np.exp(-table.loop_cost) == pytest.approx([0.3, 0.3])
    assert np.exp(-table.enter_cost) == pytest.approx([0.7, 0.7])


def test_pdfs_may_depend_on_neighbours():
    class LeftBiphones(Topology):
        num_pdfs = 9

        def pdf(self, phone, position, context=()):
            return 3 * (phone - 1) + (context[0] - 1 if context else 0)

    topology = LeftBiphones(phones=PHONES, hmms=((HmmState(0, 0),),) * 3)
    assert topology.table([(2, (1,)), (2, (3,)), (3, (2,))]).loop_pdf.tolist() == [3, 5, 7]


def test_transition_costs_can_be_scaled():
    whole = Topology.left_to_right(PHONES, 1, stay=0.2)
    half = replace(whole, transition_scale=0.5)
    np.testing.assert_allclose(half.phone_table.enter_cost, 0.5 * whole.phone_table.enter_cost)
    np.testing.assert_allclose(half.phone_table.loop_cost, 0.5 * whole.phone_table.loop_cost)


def test_estimates_staying_from_durations():
    topology = Topology.left_to_right(PHONES, num_states=2, num_silence_states=1)
    alignment = Alignment(pdfs=np.array([0, 0, 0, 1, 1, 2, 1, 2, 2, 2, 0]), words=(), phones=(
        Segment("SIL", 0, 3), Segment("A", 3, 6), Segment("A", 6, 10), Segment("SIL", 10, 11)))
    learned = topology.with_transitions([alignment], smoothing=0.5)
    assert [[state.stay for state in states] for states in learned.hmms] == [
        [(4 - 2 + 0.5) / 5], [(3 - 2 + 0.5) / 4, (4 - 2 + 0.5) / 5], [0.5, 0.5]]
    assert learned.num_pdfs == topology.num_pdfs


@pytest.mark.parametrize("make", [
    lambda: Topology.left_to_right(PHONES, num_states=0),
    lambda: Topology.left_to_right(PHONES, stay=1.0),
    lambda: Topology(phones=PHONES, hmms=((HmmState(0, 0),),)),
    lambda: Topology(phones=("A",), hmms=((),)),
    lambda: Topology(phones=("A",), hmms=((HmmState(0, 0),),), transition_scale=-1.0),
])
def test_refuses_what_is_no_topology(make):
    with pytest.raises(MisuseError, match="topology: "):
        make()
