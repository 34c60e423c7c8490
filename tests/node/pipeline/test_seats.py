"""Who makes room for whom: no member is locked out by another one, and none loses what is fairly its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.pipeline.credit import DECODE_ROWS, FIRST_ROWS, INBOX_BYTES, Credits
from node.pipeline.seats import KEEPS_S, Needs, Taken, to_end, to_preempt


def seats(**held: int) -> list[Taken[str]]:
    return [Taken(f"{name}{k}", name, 1, k) for name, count in held.items() for k in range(count)]


def test_what_fits_ends_nothing() -> None:
    assert to_end(seats(ada=250), "ada", 1, free=6, total=256) == []


def test_who_has_all_places_gives_its_newest_to_who_has_none() -> None:
    assert to_end(seats(ada=256), "bob", 1, free=0, total=256) == ["ada255"]


def test_who_has_a_fair_share_gets_no_more_when_all_is_taken() -> None:
    assert to_end(seats(ada=128, bob=128), "bob", 1, free=0, total=256) is None
    assert to_end(seats(ada=256), "ada", 1, free=0, total=256) is None


def test_sequences_whose_chain_is_broken_go_first_oldest_first() -> None:
    taken = [*seats(ada=254), Taken("new", "bob", 1, 9, suspended=True), Taken("old", "bob", 1, 5, suspended=True)]
    assert to_end(taken, "ada", 1, free=0, total=256) == ["old"]


def test_room_is_made_of_several_where_one_is_too_small() -> None:
    taken = [Taken(f"a{k}", "ada", 10, k) for k in range(10)]
    assert to_end(taken, "bob", 25, free=0, total=100) == ["a9", "a8", "a7"]


members = st.sampled_from(["ada", "bob", "cy", "dee"])


@given(
    st.lists(st.tuples(members, st.integers(1, 30), st.booleans()), max_size=20),
    members,
    st.integers(1, 60),
    st.integers(0, 10),
)
def test_ending_some_makes_room_and_leaves_everybody_a_fair_share(
    held: list[tuple[str, int, bool]], asks: str, amount: int, free: int
) -> None:
    taken = [Taken(k, member, size, k, suspended) for k, (member, size, suspended) in enumerate(held)]
    total = sum(size for _, size, _ in held) + free
    ended = to_end(taken, asks, amount, free, total)
    if ended is None:
        return
    gone = [taken[k] for k in ended]
    assert free + sum(each.amount for each in gone) >= amount
    running = [each for each in gone if not each.suspended]
    assert all(each.member != asks for each in running)
    share = total / len({asks, *(each.member for each in taken if not each.suspended)})
    for member in {each.member for each in running}:
        left = sum(each.amount for each in taken if each.member == member and each not in gone)
        own = sum(each.amount for each in taken if each.member == asks and not each.suspended)
        alone = max(each.amount for each in running if each.member == member)
        assert left >= min(share, own + amount) or (left == 0 and alone > share)


def test_one_sequence_that_takes_more_than_a_fair_share_makes_room_after_it_has_had_its_time() -> None:
    fresh = [Taken("hog", "ada", 80, 1, open_for_s=KEEPS_S - 1)]
    assert to_end(fresh, "bob", 30, free=20, total=100) is None
    hog = [Taken("hog", "ada", 80, 1, open_for_s=KEEPS_S)]
    assert to_end(hog, "bob", 30, free=20, total=100) == ["hog"]
    assert to_end(hog, "bob", 60, free=20, total=100) is None, "more than a fair share itself"
    assert to_end([Taken("fair", "ada", 50, 1)], "bob", 50, free=49, total=100) is None


def needs(taken: list[Taken[str]], **amounts: int) -> list[Needs[str]]:
    return [Needs(next(each for each in taken if each.item == item), amount) for item, amount in amounts.items()]


def test_the_newest_makes_room_for_what_grows_even_where_it_is_that_itself() -> None:
    taken = [Taken(f"a{k}", "ada", 10, k) for k in range(4)]
    assert to_preempt(taken, needs(taken, a1=1), free=0, total=40) == ["a3"]
    assert to_preempt(taken, needs(taken, a3=1), free=0, total=40) == ["a3"]
    assert to_preempt(taken, needs(taken, a0=1, a1=1, a2=1, a3=1), free=0, total=40) == ["a3"]
    assert to_preempt(taken, needs(taken, a0=1, a3=1), free=1, total=41) == ["a3"]
    assert to_preempt(taken, needs(taken, a0=5), free=5, total=45) == []


def test_a_member_with_more_than_its_share_makes_room_before_newer_ones_of_others() -> None:
    taken = [*(Taken(f"a{k}", "ada", 10, k) for k in range(8)), Taken("b", "bob", 20, 100)]
    assert to_preempt(taken, needs(taken, b=1), free=0, total=100) == ["a7"]


@given(
    st.lists(st.tuples(members, st.integers(1, 30), st.booleans(), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 10),
)
def test_all_in_need_have_room_or_made_it_and_the_oldest_of_one_member_never_does_while_it_fits_at_all(
    held: list[tuple[str, int, bool, int]], free: int
) -> None:
    taken = [Taken(k, member, size, k, broken) for k, (member, size, broken, _) in enumerate(held)]
    wanted = [Needs(each, more) for each, (_, _, broken, more) in zip(taken, held, strict=True) if more and not broken]
    total = sum(each.amount for each in taken) + free
    ended = to_preempt(taken, wanted, free, total)
    assert len(ended) == len(set(ended))
    left = free + sum(taken[k].amount for k in ended)
    assert left >= sum(need.amount for need in wanted if need.taken.item not in ended)
    if len({each.member for each in taken}) == 1 and wanted:
        oldest = min(wanted, key=lambda need: need.taken.number)
        older = [each for each in taken if each.number < oldest.taken.number and not each.suspended]
        if oldest.taken.amount + oldest.amount + sum(each.amount for each in older) <= total:
            assert oldest.taken.item not in ended


def test_rows_that_are_given_never_exceed_the_memory_set_aside() -> None:
    credits = Credits(budget_bytes=1000 * 64)
    assert credits.give("a", 450, 64) == 450
    assert credits.give("b", 512, 64) == FIRST_ROWS, "the other half is for those that begin"
    assert all(credits.give(name, 512, 64) == FIRST_ROWS for name in "cde")
    assert credits.give("f", 512, 64) == 0, "not even for the first rows"
    assert credits.shrink("a", DECODE_ROWS) == DECODE_ROWS
    for name in "bcde":
        credits.take_back(name)
    assert credits.give("b", 512, 64) == 500 - DECODE_ROWS
    assert credits.bytes_of("a") == DECODE_ROWS * 64
    assert credits.free_bytes == 500 * 64
    assert credits.give("a", 3, 64, least_rows=3) == 3, "a short sequence needs no more than it is long"
    assert credits.give("d", 3, 64) == FIRST_ROWS


def test_a_few_long_prompts_leave_room_for_many_others_to_begin() -> None:
    row_bytes = 16 * 1024
    beginners = INBOX_BYTES // row_bytes // FIRST_ROWS // 2
    credits = Credits()
    assert all(credits.give(number, 20 * FIRST_ROWS, row_bytes) >= FIRST_ROWS for number in range(beginners))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 2000), st.integers(1, 4096)), max_size=60))
def test_credit_stays_within_its_budget(given: list[tuple[int, int, int]]) -> None:
    credits = Credits(budget_bytes=1 << 20)
    for owner, rows, row_bytes in given:
        credits.give(owner, rows, row_bytes)
        assert credits.free_bytes >= 0
