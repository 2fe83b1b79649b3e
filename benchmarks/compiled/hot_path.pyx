# cython: language_level=3
"""The hot path of `pii_vault.orm.processors` for text, in C: the same steps, with Python's objects read by its C API."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8


def opener(current, default, monotonic, str slot, carefully):
    def open_(sealed):
        cdef bytes stored, plaintext
        cdef Py_ssize_t size
        cdef dict openings, by_header
        cdef tuple prepared
        cdef double now, until
        cdef const char* start
        if sealed is None:
            return None
        try:
            keyset = get_value(current, default).keyset
            stored = <bytes?>sealed
            size, start = PyBytes_GET_SIZE(stored), PyBytes_AS_STRING(stored)
            if size >= 22:
                openings = keyset.openings
                by_header = openings[slot]
                prepared = by_header[PyBytes_FromStringAndSize(start, 10)]
                now, until = monotonic(), keyset.checked_until
                if now < until:
                    plaintext = (<object>prepared[0])(
                        PyBytes_FromStringAndSize(start + 10, 12),
                        PyBytes_FromStringAndSize(start + 22, size - 22),
                        <object>prepared[1],
                    )
                    return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(plaintext), PyBytes_GET_SIZE(plaintext), NULL)
        except Exception:
            pass
        return carefully(sealed)

    return open_


def sealer(current, default, monotonic, str slot, carefully):
    def seal(value):
        cdef dict sealings
        cdef tuple prepared
        cdef double now, until
        cdef bytes iv, plaintext
        if value is None:
            return None
        try:
            keyset = get_value(current, default).keyset
            sealings = keyset.sealings
            prepared = sealings[slot]
            now, until = monotonic(), keyset.checked_until
            if now < until:
                for iv in <object>prepared[3]:
                    plaintext = PyUnicode_AsUTF8String(value)
                    return <bytes>prepared[0] + iv + <bytes>(<object>prepared[1])(iv, plaintext, <object>prepared[2])
        except Exception:
            pass
        return carefully(value)

    return seal
