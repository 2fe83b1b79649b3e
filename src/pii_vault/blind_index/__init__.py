"""Blind indexes: what a value is found by without being opened. Pure: a key and a value in, a token out.

A token is an HMAC over the value's *message*: its one canonical form, or that of a part of it. Equal values, in the
sense of the column's type, have equal messages, so a database that compares tokens answers as one that compares the
values would. A *form* says how a column's values become tokens; its text is part of what the subkey is derived from, so
tokens of different forms have nothing in common. docs/format.md, section 8, specifies all of it.

Which columns have an index, in which place of the sealed value a token stands and how a query asks for it is not known
here.
"""

from .form import FULL_BITS as FULL_BITS
from .form import Form as Form
from .form import token as token
from .messages import kind_of as kind_of
from .normalisers import normaliser as normaliser
from .parts import After as After
from .parts import LastChars as LastChars
from .parts import Part as Part
from .parts import Prefix as Prefix
from .parts import Whole as Whole
