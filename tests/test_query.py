"""Queries of an archive: what fits is what the same words mean, whatever the cards are."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tdenoise_pipeline.archive.query import matching, parse
from tdenoise_pipeline.errors import UsageError

CARDS = [
    {
        "id": "a", "kind": "movie", "name": "one.zarr", "shape": [100, 64, 32], "mean": 2.0, "dose": 0.5, "bytes": 2e9,
        "pixel_size_nm": [0.014, 0.014], "frame_time_s": 0.013, "added": "2026-11-30T10:00:00+00:00",
        "source": {"name": "s7.dm4", "format": "DM4"}, "notes": {"sample": "Pt/CeO2", "kelvin": "300"},
    },
    {"id": "b", "kind": "movie", "name": "two.zarr", "shape": [5, 64, 64], "mean": 9.0, "added": "2025-06-02T01:00:00"},
    {"id": "c", "kind": "model", "name": "m", "steps": 300, "added": "2026-01-01T00:00:00", "notes": {"sample": "Au"}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("kind = movie", "ab"),
        ("kind=movie", "ab"),
        ("KIND = Movie and not dose > 1", "a"),
        ("dose < 1 or kind = model", "ac"),
        ("dose != 3", "a"),  # what a card does not tell never fits
        ('sample like "Pt%"', "a"),
        ("sample like '%u'", "c"),
        ("kelvin > 250 and kelvin in 200..400", "a"),
        ("frames >= 100 and width = 32", "a"),
        ("pixel_size in 10pm..20pm and frame_time < 20ms", "a"),
        ("size > 1GB", "a"),
        ("added > 2025-06", "ac"),
        ("added >= 2025-06 and added < 2026", "b"),
        ("added in 2025-06..2026-01", "bc"),
        ("recording = s7", "a"),
        ("format = dm4", "a"),
        ("Pt/CeO2", "a"),
        ("zarr movie", "ab"),
        ("(kind = movie or kind = model) and (Au or (mean > 3))", "bc"),
        ('name = "two.zarr"', "b"),
    ],
)
def test_a_query_finds_what_it_says(query, ids):
    assert "".join(card["id"] for card in matching(CARDS, [query])) == ids


def test_several_words_must_all_fit():
    assert [c["id"] for c in matching(CARDS, ["kind=movie", "mean > 3"])] == ["b"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("dosis < 1", "Did you mean 'dose'"),
        ("gas = CO", "They know kind"),
        ("dose <", "cannot be understood"),
        ("(dose < 1", "cannot be understood"),
        ("dose < many", "dose cannot be 'many'"),
        ("frame_time < 5", "needs a unit"),
        ("and", "cannot be understood"),
        ("sample like", "cannot be understood"),
        ("(" * 400 + "a" + ")" * 400, "too deeply nested"),
        ("a " * 9000, "too long"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence(query, said):
    with pytest.raises(UsageError, match="^[^\\n]*$") as raised:
        matching(CARDS, [query])
    assert said in str(raised.value)


COMPARE = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
KEYS = ("mean", "dose", "fano")
LEAVES = st.tuples(st.sampled_from(KEYS), st.sampled_from(list(COMPARE)), st.integers(-3, 3))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=6,
)


def written(tree):
    if tree[0] == "not":
        return f"not ({written(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"
    return "{} {} {}".format(*tree)


def meant(tree, card, contrary=False):
    """Whether a card fits, or fits the contrary; it may do neither, where it does not tell."""
    if tree[0] == "not":
        return meant(tree[1], card, not contrary)
    if tree[0] in ("and", "or"):
        of_all = (tree[0] == "and") != contrary
        return (all if of_all else any)(meant(part, card, contrary) for part in tree[1:])
    key, compare, value = tree
    return key in card and COMPARE[compare](card[key], value) != contrary


@settings(max_examples=100, deadline=None)
@given(TREES, st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(-3, 3)), max_size=6))
def test_any_query_means_what_its_words_mean(tree, cards):
    assert matching(cards, [written(tree)]) == [card for card in cards if meant(tree, card)]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text):
    try:
        query = parse([text])
    except UsageError:
        return
    for card in CARDS:
        assert query.fits(card) in (True, False, None)


def test_a_number_asks_for_the_whole_text_and_a_date_for_as_much_as_is_given():
    cards = [{"recording": name} for name in ("1000", "10001", "2024_run", "2024")]

    def found(query):
        return [card["recording"] for card in matching(cards, [query])]

    assert found("recording = 1000") == ["1000"] and found("recording = 2024") == ["2024"]
    assert found("recording != 2024") == ["1000", "10001", "2024_run"]
    added = [{"added": "2026-11-30T12:00:00+00:00"}]
    for query in ("added > 2026-10", "added = 2026-11", "added < '2026-11-30 18:00'", "added >= 2026-11-30"):
        assert matching(added, [query]) == added
    for query in ("added > 2026-11", "added > '2026-11-30 18:00'", "not added = 2026"):
        assert matching(added, [query]) == []
    for query in ("added > 2026-9", "added < yesterday", "added = 2026-11-3"):
        with pytest.raises(UsageError, match="write 2026, 2026-11"):
            matching(added, [query])


def test_a_note_that_is_no_number_is_neither_more_nor_less_than_one():
    cards = [{"notes": {"temperature": t}} for t in ("300 C", "1200", 900)]
    assert matching(cards, ["temperature > 1000"]) == cards[1:2]
    assert matching(cards, ["not temperature > 1000"]) == cards[2:]
    assert matching(cards, ["temperature = '300 C'"]) == cards[:1]


def test_what_a_card_does_not_tell_fits_neither_a_question_nor_its_contrary():
    cards = [{"dose": 2.0}, {"dose": 0.5}, {"kind": "model"}]
    assert matching(cards, ["not dose < 1"]) == cards[:1]
    assert matching(cards, ["not (dose < 1 or dose > 3)"]) == cards[:1]
    assert matching(cards, ["not dose < 1 or kind = model"]) == [cards[0], cards[2]]


def test_a_word_is_looked_for_in_what_a_card_says_and_not_in_names_of_entries_or_hashes():
    id = "fe" * 32
    card = {"id": id, "camera": None, "name": "Pt on ceria", "notes": {"gas": "CO"}, "parents": [id[::-1]]}
    for word in ("ceria", "CO", "gas", id[:8]):
        assert matching([card], [word]) == [card]
    for word in ("camera", "parents", "fe", "fefef", "ef" * 4 + "0"):
        assert matching([card], [word]) == []
