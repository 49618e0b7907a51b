"""Personal data written with digits: numbers that check, and numbers that only look like them."""

from __future__ import annotations

import itertools
import random

import pytest

from tests import naive_content as naive
from tests.content_rigs import look_at
from tests.sizes import scaled


def digits(rng: random.Random, count: int) -> str:
    """Random digits."""
    return "".join(rng.choice("0123456789") for _ in range(count))


def personal(text: str, name: str = "") -> tuple[int, int]:
    """(all, strong) of a text."""
    found = look_at(text, name)
    for behind in (b'"' * 40, b"7" * 40):  # Where there is room, blocks of bytes are looked at.
        assert look_at(text, name, around=(b"7", behind)) == found, text
    return found.personal, found.strong


def spoilt(number: str, rng: random.Random) -> str:
    """The number with its last digit, or letter, another one."""
    last = number[-1]
    pool = "0123456789" if last.isdigit() else "ABCDEFGHJKLMNPQRSTUVWXYZ"
    return number[:-1] + rng.choice([char for char in pool if char != last])


def random_card(rng: random.Random) -> str:
    """A card number, in groups or not."""
    prefix, length = rng.choice(
        [("4", 16), ("4", 13), ("4", 19), ("55", 16), ("2720", 16), ("37", 15), ("6011", 16)]
    )
    number = naive.with_luhn(prefix + digits(rng, length - 1 - len(prefix)))
    sign = rng.choice(["", " ", "-"])
    if length == 15 and sign:
        return sign.join([number[:4], number[4:10], number[10:]])
    return sign.join(number[at : at + 4] for at in range(0, length, 4)) if sign else number


def random_fiscal(rng: random.Random) -> str:
    """A codice fiscale."""
    letters = "".join(rng.choice("ABCDEFGHLMNPRSTVZ") for _ in range(6))
    head = letters + digits(rng, 2) + rng.choice("ABCDEHLMPRST") + "12" + "H" + digits(rng, 3)
    return naive.make_fiscal(head)


def random_tax_id(rng: random.Random) -> str:
    """A Steuer-ID: nine different digits and one of them again, then the check digit."""
    chosen = rng.sample("0123456789", 9)
    chosen.append(rng.choice(chosen))
    while True:
        rng.shuffle(chosen)
        if chosen[0] != "0":
            return naive.make_tax_id("".join(chosen))


def random_nir(rng: random.Random) -> str:
    """A NIR, in one or in its groups."""
    number = naive.make_nir(f"{rng.choice('12')}84{rng.randrange(1, 13):02d}" + digits(rng, 8))
    cuts = [0, 1, 3, 5, 7, 10, 13, 15]
    grouped = " ".join(number[a:b] for a, b in itertools.pairwise(cuts))
    return rng.choice([number, grouped, number[:13] + " " + number[13:]])


def random_birth(rng: random.Random) -> str:
    """A day of the last century, as six digits."""
    return f"{rng.randrange(100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}"


def random_personnummer(rng: random.Random) -> str:
    """A personnummer, short or long, now and then of somebody who is not resident."""
    birth = random_birth(rng)
    day = int(birth[4:]) + rng.choice((0, 60))
    return naive.make_personnummer(
        rng.choice(("", "19", "20")) + f"{birth[:4]}{day:02d}", digits(rng, 3)
    )


def random_ahv(rng: random.Random) -> str:
    """An AHV number, with dots, blanks or bare."""
    return naive.make_ahv(digits(rng, 9)).replace(".", rng.choice((".", " ", "")))


STRONG = {
    "card": random_card,
    "ssn": lambda rng: (
        f"{rng.randrange(1, 666):03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10000):04d}"
    ),
    "nino": lambda rng: rng.choice(["AB123456C", "AB 12 34 56 C", "JG 12 34 56 D"]),
    "tax id": random_tax_id,
    "nir": random_nir,
    "dni": lambda rng: naive.make_dni(rng.randrange(10**8)),
    "nie": lambda rng: "X" + naive.make_dni(rng.randrange(10**7))[1:],
    "fiscal": random_fiscal,
    "cpf": lambda rng: naive.make_cpf("1" + digits(rng, 7) + "2"),
    "personnummer": random_personnummer,
    "ahv": random_ahv,
    "aadhaar": lambda rng: naive.make_aadhaar(rng.choice("23456789") + digits(rng, 10)),
}
CHECKED = {"dni", "nie", "fiscal", "cpf", "nir", "aadhaar", "tax id", "ahv", "personnummer"}
"""Their check always shows that the last place is another."""


@pytest.mark.parametrize("kind", sorted(STRONG))
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_strong_numbers(kind: str, seed: int) -> None:
    """
    Scenario: a number that its office could have given out, made by the slow twin, in many places.
    Guarantees: one strong personal datum wherever it stands; none when its check fails, nor when
    it is part of a longer word.
    """
    rng = random.Random(f"{kind} {seed}")
    number = STRONG[kind](rng)
    for around in (
        "{}",
        "my number is {}.",
        '{{"n": "{}"}}',
        "({})",
        "a\n{}\nb",
        "n={};x",
        "{}, {}x",
    ):
        assert personal(around.format(number, "y")) == (1, 1), around.format(number, "y")
    assert personal(f"{number} and {number}") == (2, 2)
    if kind != "card":  # What is left of a card in groups may be another number by chance.
        assert personal(f"x{number}")[1] == personal(f"{number}0")[1] == 0
    if kind in CHECKED:
        assert personal(spoilt(number, rng))[1] == 0, number


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_cards_and_luhn(seed: int) -> None:
    """
    Scenario: numbers of sixteen digits with a card's prefix and any last digit.
    Guarantees: a card exactly when Luhn's check, computed by the twin, holds.
    """
    rng = random.Random(seed)
    for _ in range(20):
        number = rng.choice(["4", "51", "6011", "9"]) + digits(rng, 16)
        number = number[:16]
        expected = 1 if naive.luhn(number) and number[0] != "9" else 0
        assert personal(number)[1] == expected, number


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_iban(seed: int) -> None:
    """
    Scenario: IBANs of some countries in running text, in fours, dashed, in lower case, spoilt.
    Guarantees: strong when the remainder is right; not with a wrong digit, length or country.
    """
    rng = random.Random(seed)
    bank = "".join(rng.choice("ABCXYZ") for _ in range(4))
    number = rng.choice(
        [
            naive.make_iban("DE", digits(rng, 18)),
            naive.make_iban("GB", bank + digits(rng, 14)),
            naive.make_iban("NO", digits(rng, 11)),
            naive.make_iban("MT", bank + digits(rng, 5) + "0012345MTLCAST001S"),
        ]
    )
    assert naive.iban(number)
    fours = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
    for text in (number, number.lower(), fours, fours.replace(" ", "-")):
        assert personal(f"pay to {text}, now")[1] == 1, text
    wrong = spoilt(number, rng) if number[-1].isdigit() else number[:-1]
    assert personal(f"pay to {wrong}")[1] == 0
    assert personal(f"pay to {number}7")[1] == 0
    assert personal(f"pay to XX{number[2:]} now")[1] == 0


def test_bsn_needs_a_name() -> None:
    """
    Scenario: valid Dutch numbers under a name that announces one, and under others.
    Guarantees: strong only behind such a name, and only when the eleven-test holds.
    """
    rng = random.Random(3)
    for _ in range(scaled(50)):
        number = naive.make_bsn(rng.choice("123456789") + digits(rng, 7))
        if number is not None:
            assert personal(number, "bsn") == (1, 1), number
            assert personal(number, "count") == (0, 0)
            assert personal(spoilt(number, rng), "bsn") == (0, 0)


def test_bare_numbers_need_a_name() -> None:
    """
    Scenario: PESEL and personnummer as bare digits: under a name that announces one, behind the
    word, and under other names.
    Guarantees: strong only where they are announced, and only when date and check digit hold.
    """
    rng = random.Random(4)
    for _ in range(scaled(50)):
        pesel = naive.make_pesel(random_birth(rng), digits(rng, 4))
        born = naive.make_personnummer(random_birth(rng), digits(rng, 3)).replace("-", "")
        assert personal(pesel, "pesel") == personal(born, "personnummer") == (1, 1)
        assert personal(f"PESEL: {pesel}") == personal(f"pesel {pesel}, please") == (1, 1)
        assert personal(spoilt(pesel, rng), "pesel")[1] == 0
        assert personal(spoilt(born, rng), "personnummer")[1] == 0
        assert personal(pesel, "order")[1] == 0 or naive.make_tax_id(pesel[:10]) == pesel
        assert personal(born, "order")[1] == 0
    assert personal("99139912345", "pesel")[1] == 0
    assert personal("811328-9874")[1] == personal("18811228-9874")[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "+49 30 123456",
        "+491701234567",
        "+1 (212) 555-0123",
        "+44 20 7946 0958",
        "+33 (0)1 23 45 67 89",
        "0049 30 1234567",
        "(212) 555-0123",
        "(212)555-0123",
        "212-555-0123",
        "212.555.0123",
        "1-212-555-0123",
        "01 23 45 67 89",
        "01.23.45.67.89",
        "020 7946 0958",
        "030/1234567",
        "0170 1234567",
        "01632 960983",
        "(030) 123 4567",
        "(11) 91234-5678",
    ],
)
def test_phones(text: str) -> None:
    """
    Scenario: phone numbers as people of several countries write them.
    Guarantees: one personal datum each, not a strong one, wherever it stands.
    """
    for around in ("{}", "call {} now", "tel:{}", "[{}]", "{}, {}"):
        assert personal(around.format(text, "soon")) == (1, 0), around.format(text, "soon")
    assert personal(f"{text} or {text}") == (2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02",
        "2026-01-02 10:30:11.123456",
        "2026-01-02T10:30:00+01:00",
        "02.01.2026 10:30",
        "01-02-2026 10:30",
        "01/02/2026 11:22:33",
        "1735689600",
        "1735689600000",
        "1735689600000000000",
        "192.168.100.200",
        "10.0.0.1:8080",
        "1.2.3.4567890",
        "v1.2.3-20260102",
        "3.14159265358979",
        "0.4111111111111111",
        "550e8400-e29b-41d4-a716-446655440000",
        "deadbeef12345678",
        "order 12345678901",
        "1 2 3 4 5 6 7 8 9 10",
        "100 200 3000",
        "1-2-3-4-5-6-7-8",
        "99.999.999",
        "000-12-3456",
        "666-12-3456",
        "900-12-3456",
        "123-00-4567",
        "123-45-0000",
        "123-45-6789-1",
        "111.111.111-11",
        "1234 5678 9012",
        "AB 12 34 56 E",
        "BG 12 34 56 A",
        "GB00 NWBK 6016 1331 9268 19",
        "4111111111111112",
        "4111 1111 11111111",
        "id_4111111111111111",
        "ISBN 978-3-16-148410-0",
        "12:30 to 14:45",
    ],
)
def test_other_numbers(text: str) -> None:
    """
    Scenario: dates, times, versions, addresses, counters, ids and numbers that fail their check.
    Guarantees: none is personal data.
    """
    assert personal(text) == (0, 0)
    assert personal(f"x {text} y") == (0, 0)


FIRST_GROUPS = (
    (3, 2, 4), (3, 3, 3, 2), (3, 3, 4), (1, 3, 3, 4), (3, 4, 4, 2), (4, 4, 4), (4, 4, 4, 4),
    (4, 6, 5), (1, 2, 2, 2, 3, 3, 2), (2, 3, 3, 3), (6, 4), (8, 4), (2, 2, 2), (2, 2, 2, 2, 2),
    (5, 6), (3, 8), (4, 2, 7), (13, 2), (16,), (11,), (40,), (7, 7), (1, 1, 1, 1, 1, 1, 1, 1, 1),
    (30, 2, 3, 3, 3),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_groups_at_every_place(seed: int) -> None:
    """
    Scenario: groups of digits as forms and phone numbers have them, and others, right or wrong, at
    the end of the memory, and with as many digits behind as fill every block that is looked at.
    Guarantees: the same is found.
    """
    rng = random.Random(seed)
    for _ in range(scaled(20)):
        text = ""
        while len(text) < rng.choice((12, 40, 90)):
            sign = rng.choice((" ", "-", ".", "/", ") ", ",", ""))
            groups = [digits(rng, length) for length in rng.choice(FIRST_GROUPS)]
            if rng.random() < 0.3:
                groups[0] = "0" + groups[0][1:]
            if rng.random() < 0.5:
                groups = [STRONG[rng.choice(sorted(STRONG))](rng)]
            text += rng.choice(("", "+", "(", "AB ", "1 ", "x")) + sign.join(groups)
            text += rng.choice((" ", "-", ".", ", ", " C ", "a"))
        alone = look_at(text)
        assert look_at(text, around=(b"", b"7" * 80)) == alone, text
        assert look_at(text, around=(b"8" * 40, b" 7" * 40)) == alone, text
