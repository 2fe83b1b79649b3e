"""Blind indexes: what a value is found by without being opened. Pure: a key and a value in, a token out.

A token is an HMAC over the value's *message*: its one canonical form, or that of a part of it. Equal values, in the
sense of the column's type, have equal messages, so a database that compares tokens answers as one that compares the
values would. A *form* says how a column's values become tokens; its text is part of what the subkey is derived from, so
tokens of different forms have nothing in common. docs/format.md, section 10, specifies all of it.

How a query asks for a token is not known here.
"""

from .buckets import MOST_BUCKETS as MOST_BUCKETS
from .buckets import Bucket as Bucket
from .declaration import INDEX as INDEX
from .declaration import NOTHING as NOTHING
from .declaration import BlindIndex as BlindIndex
from .declaration import Declared as Declared
from .declaration import Slot as Slot
from .declaration import SlotRecord as SlotRecord
from .declaration import Token as Token
from .declaration import contents as contents
from .declaration import declared as declared
from .declaration import slots_of as slots_of
from .form import FULL_BITS as FULL_BITS
from .form import Form as Form
from .form import Message as Message
from .form import token as token
from .form import token_maker as token_maker
from .messages import kind_of as kind_of
from .normalisers import normaliser as normaliser
from .parts import After as After
from .parts import LastChars as LastChars
from .parts import Part as Part
from .parts import Prefix as Prefix
from .parts import Whole as Whole
from .planning import Plan as Plan
from .planning import Verdict as Verdict
from .planning import plan as plan
