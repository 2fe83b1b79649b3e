"""Python value <-> canonical bytes: what is sealed, and how an opened value is read.

A codec has a number that stands in the header of every sealed value. The registry is frozen: a number's
meaning never changes, numbers are only ever added, and a value has exactly one encoding. docs/codecs.md
specifies each codec for an implementation in another language. Numbers are big endian, sizes are in bytes.

==  ==============  =====================================  ==================================================
id  name            takes                                  bytes
==  ==============  =====================================  ==================================================
1   text            `str`                                  UTF-8 as given, no normalisation
2   bytes           `bytes`, `bytearray`, `memoryview`     as they are
3   int64           `int` from -2^63 to 2^63 - 1           8, two's complement
4   bigint          `int` beyond int64                     9 or more, two's complement, as few as possible
5   float64         `float`; `int` if exact                8, IEEE 754 binary64, bits kept
6   decimal         finite `Decimal`, `int`                ASCII ``1.10``, ``-0``, ``1E+5``; exponent kept
7   bool            `bool`                                 1, 00 or 01
8   date            `date`, not `datetime`                 4, signed days since 1970-01-01
9   time            `time` without zone; fold dropped      8, microseconds since midnight
10  datetime_aware  `datetime` with UTC offset             8, signed microseconds since 1970-01-01T00:00Z, and
                                                           4, signed seconds of offset; zone name dropped
11  datetime_naive  `datetime` without; fold dropped       8, signed microseconds since 1970-01-01T00:00
12  uuid            `UUID`                                 16
13  enum            member of one `Enum`                   8, the first of SHA-256 over the member's name
14  json            `dict`, `list`, `tuple` and scalars    UTF-8, keys sorted and distinct, no spaces
15  array           `list`, `tuple`                        per item 00 for None, or id, length in 4, bytes
==  ==============  =====================================  ==================================================

None has no encoding: it stays NULL, and no decoder returns it. `encode` raises `EncodingError`, `decode`
raises `FormatError`, and no error holds the value or the bytes. Each is made after the ``except`` block of
its cause: inside, it would carry the cause as its context, which ``from None`` only hides, and a
`UnicodeEncodeError` holds the text. Nothing here knows a key, reads a clock or asks for the machine's time
zone or locale.
"""

from .codec import REGISTRY as REGISTRY
from .codec import Codec as Codec
from .codec import Encoding as Encoding
from .compound import JSON as JSON
from .compound import JSON_DEPTH as JSON_DEPTH
from .compound import JSON_DIGITS as JSON_DIGITS
from .compound import array_codec as array_codec
from .compound import enum_codec as enum_codec
from .scalars import BIGINT as BIGINT
from .scalars import BOOL as BOOL
from .scalars import BYTES as BYTES
from .scalars import DECIMAL as DECIMAL
from .scalars import FLOAT64 as FLOAT64
from .scalars import INT64 as INT64
from .scalars import INTEGER as INTEGER
from .scalars import TEXT as TEXT
from .scalars import UUID as UUID
from .times import DATE as DATE
from .times import DATETIME_AWARE as DATETIME_AWARE
from .times import DATETIME_NAIVE as DATETIME_NAIVE
from .times import TIME as TIME
