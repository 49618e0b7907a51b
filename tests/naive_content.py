"""The slow twins of what is found in argument strings: `re`, `ipaddress`, `urllib`, plain loops.

Hosts are normalised with the standard library, keys are found by the regular expressions that
their issuers and gitleaks publish, numbers are checked the way their offices write it down.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

BROKEN = "broken"

_IGNORED = {0xAD, 0x200B, 0x2060, 0xFEFF, *range(0xFE00, 0xFE10)}
_FORBIDDEN = set("/?#\\:@%[]<>`{}|^,;()\"'\x7f") | {chr(code) for code in range(33)}


def normal_host(text: bytes) -> str:
    """The normal form of a host, or BROKEN."""
    if text.startswith(b"["):
        return _ipv6(text[1:-1].partition(b"%")[0].decode()) if text.endswith(b"]") else BROKEN
    if len(text) > 1024:
        return BROKEN
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return BROKEN
    mapped = "".join(_mapped(char) for char in decoded if ord(char) not in _IGNORED)
    if any(char in _FORBIDDEN for char in mapped):
        return BROKEN
    labels = mapped.split(".")
    if any(not label.isascii() and len(label) > 63 for label in labels):
        return BROKEN
    encoded = [
        label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels
    ]
    name = ".".join(encoded).removesuffix(".")
    if not name or len(name) > 253:
        return BROKEN
    return _ipv4(name) if _is_number(name.split(".")[-1]) else name


def _mapped(char: str) -> str:
    """One character as names have it."""
    code = ord(char)
    if code in {0x3002, 0xFF61}:
        return "."
    if 0xFF01 <= code <= 0xFF5E:
        code -= 0xFEE0
    folded = chr(code).lower()
    return folded if code < 0x600 and len(folded) == 1 else chr(code)


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", label) is not None


def _ipv4(name: str) -> str:
    """WHATWG's IPv4 parser."""
    parts = name.split(".")
    if len(parts) > 4 or not all(parts):
        return BROKEN
    values = []
    for part in parts:
        base, digits = 10, part
        if part.startswith("0x"):
            base, digits = 16, part[2:]
        elif len(part) > 1 and part.startswith("0"):
            base, digits = 8, part[1:]
        try:
            values.append(int(digits, base) if digits else 0)
        except ValueError:
            return BROKEN
        if "_" in digits or "+" in digits or "-" in digits:
            return BROKEN
    if any(value > 255 for value in values[:-1]) or values[-1] >= 256 ** (5 - len(values)):
        return BROKEN
    address = values[-1] + sum(value << 8 * (3 - i) for i, value in enumerate(values[:-1]))
    return str(ipaddress.IPv4Address(address))


def _ipv6(text: str) -> str:
    """An IPv6 address as 32 digits in brackets, or the IPv4 address in it."""
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return BROKEN
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"[{address.exploded.replace(':', '')}]"


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a normal form is, None for a name."""
    if re.fullmatch(r"\[[0-9a-f]{32}\]", host):
        return ipaddress.IPv6Address(int(host[1:-1], 16))
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


def allowed(entries: Sequence[str], host: str, port: int) -> bool:
    """Whether a host in its normal form is on the list."""
    return host != BROKEN and any(_covers(entry, host, port) for entry in entries)


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether one entry covers a host."""
    address = address_of(host)
    matched = re.fullmatch(r"(.*?)(?::([0-9]+))?", entry)
    assert matched is not None
    pattern, wanted = matched[1], matched[2]
    if entry.count(":") > 1 and not entry.startswith("["):
        pattern, wanted = entry, None
    if wanted is not None and int(wanted) != port:
        return False
    if address is not None:
        try:
            return address in ipaddress.ip_network(pattern.strip("[]"))
        except ValueError:
            return False
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    if pattern.startswith("."):
        return host == pattern[1:] or host.endswith(pattern)
    return host == normal_host(pattern.encode())


_LOCAL = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16
::/127 fc00::/7 fe80::/10
"""
_LOCAL_NETS = [ipaddress.ip_network(net) for net in _LOCAL.split()]


def is_public(host: str) -> bool:
    """Whether a host may be out on the internet."""
    if host == BROKEN:
        return True
    address = address_of(host)
    if address is not None:
        return not any(address in net for net in _LOCAL_NETS)
    local = r"(?:.*\.)?(?:local|internal|localhost|test|lan|home\.arpa)"
    return "." in host and re.fullmatch(local, host) is None


# Keys, as gitleaks and the issuers write them down: name -> regular expression.
KEYS = {
    "aws": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
    "gcp": r"AIza[\w-]{35,}",
    "google oauth": r"GOCSPX-[\w-]{28,}|ya29\.[\w.-]{20,}",
    "azure storage": r"AccountKey=[A-Za-z0-9+/=]{86,}",
    "azure client": r"[\w.~]{3}\dQ~[\w.~-]{31,34}",
    "github": r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{36,}",
    "gitlab": r"(?:glpat|gldt|glrt|glcbt|glsoat|glimt|glft)-[\w.-]{20,}",
    "bitbucket": r"ATBB[A-Za-z0-9]{24,40}|ATCTT3[\w+/=-]{50,}",
    "azure sas": r"sig=(?:[A-Za-z0-9]|%2[BF]){43}%3D",
    "stripe": r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}|whsec_[A-Za-z0-9+/=]{24,}",
    "square": r"sq0atp-[\w-]{22,}|sq0csp-[\w-]{43,}|EAAA[\w-]{60}",
    "paypal": r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}",
    "slack": r"xox[abprse]-[\w-]{20,}|xapp-[\w-]{20,}",
    "openai": r"sk-(?:proj|svcacct|admin)-[\w-]{20,}|sk-[A-Za-z0-9]{20,64}",
    "anthropic": r"sk-ant-[\w-]{20,}",
    "hugging face": r"hf_[A-Za-z0-9]{30,64}",
    "npm": r"npm_[A-Za-z0-9]{36}",
    "pypi": r"pypi-[\w-]{50,}",
    "sendgrid": r"SG\.[\w.-]{60,}",
    "twilio": r"SK[0-9a-f]{32}",
    "telegram": r"[0-9]{8,10}:[\w-]{35}",
    "digitalocean": r"do[por]_v1_[a-f0-9]{64}",
    "databricks": r"dapi[a-f0-9]{32}",
    "jwt": r"eyJ[\w-]{7,}\.eyJ[\w-]{7,}\.[\w-]{20,}",
    "models": r"nvapi-[\w-]{60,}|csk-[A-Za-z0-9]{40,64}|AQ\.Ab[\w-]{40,}|sk_[0-9a-f]{48}",
    "groq": r"gsk_[A-Za-z0-9]{40,64}",
    "vault": r"hvs\.[\w-]{24,}",
}


def random_key(name: str, rng: object) -> str:
    """A string that one of the issuers could have made. `rng`: a random.Random."""
    return _MAKERS[name](rng)


def _drawn(alphabet: str) -> object:
    return lambda rng, count: "".join(rng.choice(alphabet) for _ in range(count))


_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_UPPER = _LOWER.upper()
_alnum = _drawn(_LOWER + _UPPER + _DIGITS)
_word = _drawn(_LOWER + _UPPER + _DIGITS + "_-")
_upper = _drawn(_UPPER + _DIGITS)
_hex = _drawn("0123456789abcdef")
_digits = _drawn(_DIGITS)
_base36 = _drawn(_LOWER + _DIGITS)

_MAKERS = {
    "aws": lambda r: r.choice(["AKIA", "ASIA"]) + _upper(r, 16),
    "gcp": lambda r: "AIza" + _word(r, 35),
    "google oauth": lambda r: r.choice(["GOCSPX-" + _word(r, 28), "ya29." + _word(r, 40)]),
    "azure storage": lambda r: "AccountKey=" + _alnum(r, 86) + "==",
    "azure client": lambda r: _alnum(r, 3) + "8Q~" + _alnum(r, 34),
    "github": lambda r: r.choice(
        ["gh" + r.choice("pousr") + "_" + _alnum(r, 36), "github_pat_" + _alnum(r, 60)]
    ),
    "gitlab": lambda r: r.choice(["glpat-", "glsoat-", "glft-"]) + _word(r, 20),
    "bitbucket": lambda r: r.choice(["ATBB" + _alnum(r, 32), "ATCTT3" + _word(r, 60)]),
    "azure sas": lambda r: "sig=" + _alnum(r, 20) + "%2B" + _alnum(r, 21) + "%2F" + "%3D",
    "stripe": lambda r: r.choice(["sk_live_", "rk_live_", "sk_test_", "whsec_"]) + _alnum(r, 24),
    "square": lambda r: r.choice(
        ["sq0atp-" + _alnum(r, 22), "sq0csp-" + _alnum(r, 43), "EAAA" + _alnum(r, 60)]
    ),
    "paypal": lambda r: (
        r.choice(["access_token$production$", "access_token$sandbox$"])
        + _base36(r, 16)
        + "$"
        + _hex(r, 32)
    ),
    "slack": lambda r: r.choice(["xoxb-", "xoxp-", "xapp-"]) + _digits(r, 12) + "-" + _alnum(r, 24),
    "openai": lambda r: r.choice(["sk-" + _alnum(r, 48), "sk-proj-" + _word(r, 48)]),
    "anthropic": lambda r: "sk-ant-api03-" + _word(r, 95),
    "hugging face": lambda r: "hf_" + _alnum(r, 34),
    "npm": lambda r: "npm_" + _alnum(r, 36),
    "pypi": lambda r: "pypi-" + _word(r, 60),
    "sendgrid": lambda r: "SG." + _word(r, 22) + "." + _word(r, 43),
    "twilio": lambda r: "SK" + _hex(r, 32),
    "telegram": lambda r: "1" + _digits(r, 8) + ":AA" + _word(r, 33),
    "digitalocean": lambda r: "dop_v1_" + _hex(r, 64),
    "databricks": lambda r: "dapi" + _hex(r, 32),
    "jwt": lambda r: "eyJ" + _alnum(r, 20) + ".eyJ" + _alnum(r, 40) + "." + _word(r, 43),
    "models": lambda r: r.choice(
        [
            "nvapi-" + _word(r, 64),
            "csk-" + _alnum(r, 48),
            "AQ.Ab" + _word(r, 48),
            "sk_" + _hex(r, 48),
        ]
    ),
    "groq": lambda r: "gsk_" + _alnum(r, 52),
    "vault": lambda r: "hvs." + _word(r, 30),
}
assert set(_MAKERS) == set(KEYS)


def entropy(text: bytes) -> float:
    """Bits of Shannon entropy a byte."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def is_opaque(text: str) -> bool:
    """Whether a value looks drawn at random, and like nothing that stands for a secret."""
    data = text.encode()
    if not 8 <= len(data) <= 512 or re.search(r"[\x00-\x20\x7f]", text) or "://" in text:
        return False
    if re.match(r"[$/~]|\./|[A-Za-z]:[/\\]", text):
        return False
    if re.fullmatch(r"<.*>|\[.*\]|\{.*\}|%.*%", text, re.DOTALL):
        return False
    humps = len(re.findall(r"(?<![A-Za-z])[A-Za-z]|(?<=[a-z])[A-Z]", text))
    letters = len(re.findall(r"[A-Za-z]", text))
    if not re.search(r"[0-9]", text) and letters >= 3.5 * humps:
        return False
    if "_" in text and not re.search(rb'[a-z"<>`\x80-\xff+/=.-]', data):
        return False
    sets = (rb"[a-z]", rb"[A-Z]", rb"[0-9]", rb"[^A-Za-z0-9_.+/=-]")
    classes = sum(bool(re.search(pattern, data)) for pattern in sets)
    if len(data) >= 16:
        return classes >= 2 and entropy(data) >= 3.0
    return classes >= 3 and bool(re.search(rb"[0-9]", data)) and entropy(data) >= 2.5


def luhn(number: str) -> bool:
    """Luhn's check."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(number))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def iban(text: str) -> bool:
    """ISO 13616, the length left out."""
    moved = text[4:] + text[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def with_luhn(head: str) -> str:
    """A number with the check digit that Luhn asks for."""
    return next(head + str(d) for d in range(10) if luhn(head + str(d)))


def make_iban(country: str, rest: str) -> str:
    """An IBAN with its check digits."""
    check = 98 - int("".join(str(int(char, 36)) for char in rest + country + "00")) % 97
    return f"{country}{check:02d}{rest}"


def make_cpf(head: str) -> str:
    """A CPF: nine digits and their two check digits, with its signs."""
    digits = [int(char) for char in head]
    for _ in range(2):
        weights = range(len(digits) + 1, 1, -1)
        rest = sum(d * w for d, w in zip(digits, weights, strict=True)) * 10 % 11
        digits.append(rest % 10)
    number = "".join(map(str, digits))
    return f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"


def make_tax_id(head: str) -> str:
    """A Steuer-ID: ten digits and ISO 7064 mod 11,10."""
    product = 10
    for char in head:
        total = (int(char) + product) % 10 or 10
        product = total * 2 % 11
    return head + str((11 - product) % 10)


def make_nir(head: str) -> str:
    """A NIR: thirteen digits and the key."""
    return f"{head}{97 - int(head) % 97:02d}"


def make_bsn(head: str) -> str | None:
    """A BSN of eight digits and its check digit, None when there is none."""
    rest = sum(int(char) * weight for char, weight in zip(head, range(9, 1, -1), strict=True)) % 11
    return None if rest == 10 else head + str(rest)


def _permuted(place: int, digit: int) -> int:
    for _ in range(place % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


def _dihedral(a: int, b: int) -> int:
    """The group of the turns (0-4) and flips (5-9) of a pentagon."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b - 5) % 5 + 5
    return (a - 5 - b) % 5 + 5 if b < 5 else (a - b) % 5


def verhoeff(number: str) -> bool:
    """Verhoeff's check."""
    check = 0
    for place, char in enumerate(reversed(number)):
        check = _dihedral(check, _permuted(place, int(char)))
    return check == 0


def make_aadhaar(head: str) -> str:
    """An Aadhaar number in its groups."""
    number = next(head + str(d) for d in range(10) if verhoeff(head + str(d)))
    return f"{number[:4]} {number[4:8]} {number[8:]}"


def make_dni(number: int) -> str:
    """A DNI with its letter."""
    return f"{number:08d}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def make_pesel(birth: str, serial: str) -> str:
    """A PESEL: six digits of a date, four of a serial number, the check digit."""
    head = birth + serial
    total = sum(int(char) * weight for char, weight in zip(head, (1, 3, 7, 9) * 3, strict=False))
    return head + str(-total % 10)


def make_personnummer(birth: str, serial: str) -> str:
    """A personnummer with its dash: six or eight digits of a date, three, and Luhn's."""
    return f"{birth}-{with_luhn(birth[-6:] + serial)[6:]}"


def make_ahv(serial: str) -> str:
    """An AHV number with its dots: nine digits behind 756, and the check digit of an EAN."""
    head = "756" + serial
    total = sum(int(char) * (3 if place % 2 else 1) for place, char in enumerate(head))
    return f"756.{serial[:4]}.{serial[4:8]}.{serial[8:]}{-total % 10}"


_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_ODD = dict(zip(_DIGITS + _UPPER, _ODD_DIGITS + _ODD_LETTERS, strict=True))


def make_fiscal(head: str) -> str:
    """A codice fiscale: fifteen places and the check letter."""
    total = 0
    for i, char in enumerate(head):
        even = int(char) if char.isdigit() else ord(char) - 65
        total += _ODD[char] if i % 2 == 0 else even
    return head + _UPPER[total % 26]


def name_words(name: str) -> str:
    """The letters of a name, lower case, nothing between them."""
    return re.sub(r"[^a-z]", "", name.lower())


def key_matches(text: str) -> Iterator[str]:
    """Every key in a text, by the regular expressions."""
    for pattern in KEYS.values():
        for matched in re.finditer(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", text):
            yield matched[0]
