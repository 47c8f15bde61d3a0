"""The blocking PKCS#11 calls, by ctypes: the one module that touches a vendor's library.

OASIS PKCS#11 base specification 2.40; the structures and the order of the functions are those of
its header ``pkcs11.h``, with the packing of Unix (none). Every call lets go of the GIL. Why this is
no package from an index: docs/decisions/0025.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from fep.keys.errors import (
    CKR_OK,
    CKR_TOKEN_NOT_PRESENT,
    CKR_TOKEN_NOT_RECOGNIZED,
    BackendUnavailableError,
    CardDataError,
    CryptokiError,
)

LISTED_MAX: Final = 1024
"""Slots of a library, or mechanisms of a token."""
OBJECTS_MAX: Final = 256
"""Objects one search gives; a token of a bank has a handful."""
ATTRIBUTE_BYTES_MAX: Final = 16_384
SIGNATURE_BYTES_MAX: Final = 1024
"""Of an RSA key of 8192 bits."""

CKO_CERTIFICATE: Final = 1
CKO_PRIVATE_KEY: Final = 3
CKC_X_509: Final = 0
CKU_USER: Final = 1
CKU_CONTEXT_SPECIFIC: Final = 2
CKM_RSA_PKCS: Final = 0x0001
CKM_SHA256_RSA_PKCS: Final = 0x0040
CKM_ECDSA: Final = 0x1041
CKM_ECDSA_SHA256: Final = 0x1044

CKA_CLASS: Final = 0x0000
CKA_LABEL: Final = 0x0003
CKA_VALUE: Final = 0x0011
CKA_CERTIFICATE_TYPE: Final = 0x0080
CKA_ID: Final = 0x0102
CKA_ALWAYS_AUTHENTICATE: Final = 0x0202

CKF_LOGIN_REQUIRED: Final = 0x0000_0004
CKF_USER_PIN_COUNT_LOW: Final = 0x0001_0000
CKF_USER_PIN_FINAL_TRY: Final = 0x0002_0000
CKF_USER_PIN_LOCKED: Final = 0x0004_0000

_CKF_TOKEN_PRESENT: Final = 0x1
_CKF_OS_LOCKING_OK: Final = 0x2
_CKF_SERIAL_SESSION: Final = 0x4
_CKF_SIGN: Final = 0x800
_UNAVAILABLE: Final = ctypes.c_ulong(-1).value
_BUFFER_TOO_SMALL: Final = 0x150
_ALREADY_INITIALIZED: Final = 0x191
_NO_SUCH_ATTRIBUTE: Final = frozenset({0x11, 0x12})
"""CKR_ATTRIBUTE_SENSITIVE and CKR_ATTRIBUTE_TYPE_INVALID."""
_FALSE: Final = 0
_SIZE_CHANGES_MAX: Final = 4
"""How often a list may grow between asking for its size and for itself."""

_ulong = ctypes.c_ulong
_ulong_p = ctypes.POINTER(ctypes.c_ulong)
_void_p = ctypes.c_void_p


class _Version(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (("major", ctypes.c_ubyte), ("minor", ctypes.c_ubyte))


class _InitializeArgs(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("create_mutex", _void_p),
        ("destroy_mutex", _void_p),
        ("lock_mutex", _void_p),
        ("unlock_mutex", _void_p),
        ("flags", _ulong),
        ("reserved", _void_p),
    )


class _SlotInfo(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("description", ctypes.c_ubyte * 64),
        ("manufacturer", ctypes.c_ubyte * 32),
        ("flags", _ulong),
        ("hardware", _Version),
        ("firmware", _Version),
    )


class _TokenInfo(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("label", ctypes.c_ubyte * 32),
        ("manufacturer", ctypes.c_ubyte * 32),
        ("model", ctypes.c_ubyte * 16),
        ("serial", ctypes.c_ubyte * 16),
        ("flags", _ulong),
        # Counts of sessions, lengths of PINs and sizes of memory, of which nothing is used.
        ("numbers", _ulong * 10),
        ("hardware", _Version),
        ("firmware", _Version),
        ("time", ctypes.c_ubyte * 16),
    )


class _Mechanism(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("mechanism", _ulong),
        ("parameter", _void_p),
        ("size", _ulong),
    )


class _MechanismInfo(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("key_size_min", _ulong),
        ("key_size_max", _ulong),
        ("flags", _ulong),
    )


class _Attribute(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (("kind", _ulong), ("value", _void_p), ("size", _ulong))


_FUNCTIONS: Final = (
    "Initialize",
    "Finalize",
    "GetInfo",
    "GetFunctionList",
    "GetSlotList",
    "GetSlotInfo",
    "GetTokenInfo",
    "GetMechanismList",
    "GetMechanismInfo",
    "InitToken",
    "InitPIN",
    "SetPIN",
    "OpenSession",
    "CloseSession",
    "CloseAllSessions",
    "GetSessionInfo",
    "GetOperationState",
    "SetOperationState",
    "Login",
    "Logout",
    "CreateObject",
    "CopyObject",
    "DestroyObject",
    "GetObjectSize",
    "GetAttributeValue",
    "SetAttributeValue",
    "FindObjectsInit",
    "FindObjects",
    "FindObjectsFinal",
    "EncryptInit",
    "Encrypt",
    "EncryptUpdate",
    "EncryptFinal",
    "DecryptInit",
    "Decrypt",
    "DecryptUpdate",
    "DecryptFinal",
    "DigestInit",
    "Digest",
    "DigestUpdate",
    "DigestKey",
    "DigestFinal",
    "SignInit",
    "Sign",
)
"""CK_FUNCTION_LIST from its begin to the last function that is used."""


class _FunctionList(ctypes.Structure):
    _fields_: ClassVar[Sequence[Any]] = (
        ("version", _Version),
        *((name, _void_p) for name in _FUNCTIONS),
    )


_ARGUMENTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "Initialize": (_void_p,),
    "Finalize": (_void_p,),
    "GetSlotList": (ctypes.c_ubyte, _void_p, _ulong_p),
    "GetSlotInfo": (_ulong, ctypes.POINTER(_SlotInfo)),
    "GetTokenInfo": (_ulong, ctypes.POINTER(_TokenInfo)),
    "GetMechanismList": (_ulong, _void_p, _ulong_p),
    "GetMechanismInfo": (_ulong, _ulong, ctypes.POINTER(_MechanismInfo)),
    "OpenSession": (_ulong, _ulong, _void_p, _void_p, _ulong_p),
    "CloseAllSessions": (_ulong,),
    "Login": (_ulong, _ulong, ctypes.c_char_p, _ulong),
    "GetAttributeValue": (_ulong, _ulong, ctypes.POINTER(_Attribute), _ulong),
    "FindObjectsInit": (_ulong, ctypes.POINTER(_Attribute), _ulong),
    "FindObjects": (_ulong, _ulong_p, _ulong, _ulong_p),
    "FindObjectsFinal": (_ulong,),
    "SignInit": (_ulong, ctypes.POINTER(_Mechanism), _ulong),
    "Sign": (_ulong, ctypes.c_char_p, _ulong, _void_p, _ulong_p),
}


@attrs.frozen
class Token:
    """A token as its library shows it at one moment."""

    slot_id: int
    slot: str
    """The library's description of the slot, for people."""
    label: str
    serial: str
    flags: int

    def __str__(self) -> str:
        return f"{self.serial or 'without a serial'} ({self.label})"


class Library:
    """A vendor's PKCS#11 library, loaded once a process and initialised while anybody uses it.

    ``acquire`` and ``release`` count its users; between them every call may be made from any
    thread, since it is initialised for programs with several threads. A call that fails raises
    ``CryptokiError``.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._lock = threading.Lock()
        self._users = 0
        self._ours = False
        self._functions: dict[str, Callable[..., int]] = {}
        self._handle: ctypes.CDLL | None = None
        self._holders: dict[int, object] = {}

    def acquire(self) -> None:
        """Count one user more; the first has it loaded and initialised.

        Raises:
            BackendUnavailableError: it can't be loaded, or is no such library.
            CryptokiError: it does not start.
        """
        with self._lock:
            if self._users == 0:
                self._load()
                # Without this flag a library may leave its locks out; SoftHSM and OpenSC do.
                arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
                result = self._functions["Initialize"](ctypes.byref(arguments))
                if result not in {CKR_OK, _ALREADY_INITIALIZED}:
                    raise CryptokiError("C_Initialize", result)
                self._ours = result == CKR_OK
            self._users += 1

    def release(self) -> None:
        """Count one user less; the last one ends the library, so that the next starts it anew."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._holders.clear()
                if self._ours:
                    self._functions["Finalize"](None)

    def hold(self, slot_id: int, holder: object) -> bool:
        """Say whether the slot is the holder's from now on: a log-in counts for a whole process."""
        return self._holders.setdefault(slot_id, holder) == holder

    def let_go(self, slot_id: int, holder: object) -> None:
        """End the holder's hold."""
        if self._holders.get(slot_id) == holder:
            del self._holders[slot_id]

    def slot_ids(self) -> list[int]:
        """Return all slots, with a token or without, as they are now."""
        # Asking for the size is what makes a library look for new slots (section 5.5).
        return self._list("GetSlotList", _FALSE)

    def token(self, slot_id: int) -> Token | None:
        """Return the token in a slot, None where there is none."""
        # Some libraries (OpenSC) look whether a token went only here, and tell what they remember
        # of it below.
        slot = _SlotInfo()
        self._call("GetSlotInfo", slot_id, ctypes.byref(slot))
        if not slot.flags & _CKF_TOKEN_PRESENT:
            return None
        info = _TokenInfo()
        result = self._functions["GetTokenInfo"](slot_id, ctypes.byref(info))
        if result in {CKR_TOKEN_NOT_PRESENT, CKR_TOKEN_NOT_RECOGNIZED}:
            return None
        if result != CKR_OK:
            raise CryptokiError("C_GetTokenInfo", result)
        return Token(
            slot_id, _text(slot.description), _text(info.label), _text(info.serial), info.flags
        )

    def can_sign(self, slot_id: int, mechanism: int) -> bool:
        """Say whether the token in the slot signs by a mechanism."""
        if mechanism not in self._list("GetMechanismList", slot_id):
            return False
        info = _MechanismInfo()
        self._call("GetMechanismInfo", slot_id, mechanism, ctypes.byref(info))
        return bool(info.flags & _CKF_SIGN)

    def open_session(self, slot_id: int) -> int:
        """Return a new session that only reads."""
        session = _ulong()
        self._call("OpenSession", slot_id, _CKF_SERIAL_SESSION, None, None, ctypes.byref(session))
        return session.value

    def close_all_sessions(self, slot_id: int) -> None:
        """End this process's sessions on a token; that also logs out."""
        self._call("CloseAllSessions", slot_id)

    def login(self, session: int, user: int, pin: str) -> int:
        """Send a PIN once; return the library's answer, which may be any CKR."""
        data = pin.encode("ascii")
        return self._functions["Login"](session, user, data, len(data))

    def find(self, session: int, template: Mapping[int, int | bytes]) -> list[int]:
        """Return the objects that have these attributes, at most ``OBJECTS_MAX``."""
        values = [
            _ulong(value)
            if isinstance(value, int)
            else ctypes.create_string_buffer(value, len(value))
            for value in template.values()
        ]
        wanted = (_Attribute * len(values))()
        for place, kind, value in zip(wanted, template, values, strict=True):
            place.kind, place.size = kind, ctypes.sizeof(value)
            place.value = ctypes.cast(ctypes.byref(value), _void_p)
        self._call("FindObjectsInit", session, wanted, len(values))
        found: list[int] = []
        try:
            page = (_ulong * OBJECTS_MAX)()
            count = _ulong()
            while len(found) < OBJECTS_MAX:
                room = OBJECTS_MAX - len(found)
                self._call("FindObjects", session, page, room, ctypes.byref(count))
                if not count.value:
                    break
                found += page[: min(count.value, room)]
        finally:
            self._functions["FindObjectsFinal"](session)
        return found

    def attribute(self, session: int, object_handle: int, kind: int) -> bytes | None:
        """Return an attribute's value, None where the object has none or does not show it."""
        asked = _Attribute(kind, None, 0)
        if not self._get_attribute(session, object_handle, asked):
            return None
        if asked.size > ATTRIBUTE_BYTES_MAX:
            msg = f"an attribute of the token has more than {ATTRIBUTE_BYTES_MAX} bytes"
            raise CardDataError(msg)
        buffer = ctypes.create_string_buffer(asked.size)
        asked.value = ctypes.cast(buffer, _void_p)
        if not self._get_attribute(session, object_handle, asked):
            return None
        # Whatever the library says by now, there is no more than was asked for.
        return buffer.raw[: asked.size]

    def _get_attribute(self, session: int, object_handle: int, asked: _Attribute) -> bool:
        get = self._functions["GetAttributeValue"]
        result = get(session, object_handle, ctypes.byref(asked), 1)
        if result in _NO_SUCH_ATTRIBUTE or asked.size == _UNAVAILABLE:
            return False
        if result != CKR_OK:
            raise CryptokiError("C_GetAttributeValue", result)
        return True

    def sign_init(self, session: int, mechanism: int, key: int) -> None:
        """Begin a signature; the session has one at a time."""
        how = _Mechanism(mechanism, None, 0)
        self._call("SignInit", session, ctypes.byref(how), key)

    def sign(self, session: int, data: bytes) -> bytes:
        """Return the signature that was begun, and end it."""
        signature = ctypes.create_string_buffer(SIGNATURE_BYTES_MAX)
        size = _ulong(SIGNATURE_BYTES_MAX)
        self._call("Sign", session, data, len(data), signature, ctypes.byref(size))
        return signature.raw[: size.value]

    def _list(self, name: str, about: int) -> list[int]:
        """Return what a function lists that is asked for the size of its list first."""
        for _ in range(_SIZE_CHANGES_MAX):
            count = _ulong()
            self._call(name, about, None, ctypes.byref(count))
            if not count.value:
                return []
            if count.value > LISTED_MAX:
                msg = f"C_{name}: the library lists more than {LISTED_MAX}"
                raise CardDataError(msg)
            found = (_ulong * count.value)()
            result = self._functions[name](about, found, ctypes.byref(count))
            if result == CKR_OK:
                return list(found[: min(count.value, len(found))])
            if result != _BUFFER_TOO_SMALL:
                call = f"C_{name}"
                raise CryptokiError(call, result)
        msg = f"C_{name}: the library's list does not come to rest"
        raise CardDataError(msg)

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - what ctypes takes
        result = self._functions[name](*arguments)
        if result != CKR_OK:
            call = f"C_{name}"
            raise CryptokiError(call, result)

    def _load(self) -> None:
        """Load it, unless that has happened; it stays loaded for the life of the process."""
        if self._functions:
            return
        try:
            self._handle = ctypes.CDLL(self.path)
            get_list = self._handle.C_GetFunctionList
        except (OSError, AttributeError) as error:
            msg = f"{self.path} can't be loaded as a PKCS#11 library: {error}"
            raise BackendUnavailableError(msg) from error
        get_list.restype = _ulong
        get_list.argtypes = (ctypes.POINTER(ctypes.POINTER(_FunctionList)),)
        table = ctypes.POINTER(_FunctionList)()
        result = get_list(ctypes.byref(table))
        if result != CKR_OK:
            raise CryptokiError("C_GetFunctionList", result)
        try:
            found = table.contents
        except ValueError as error:
            msg = f"{self.path} has no list of functions"
            raise BackendUnavailableError(msg) from error
        functions: dict[str, Callable[..., int]] = {}
        for name, arguments in _ARGUMENTS.items():
            address = getattr(found, name)
            if not address:
                msg = f"{self.path} has no C_{name}"
                raise BackendUnavailableError(msg)
            functions[name] = ctypes.CFUNCTYPE(_ulong, *arguments)(address)
        self._functions = functions


_libraries: Final[dict[str, Library]] = {}


def library_at(path: Path) -> Library:
    """Return the library of a file; the same one for every slot that names it."""
    real = os.path.realpath(path)
    # One that another thread put there in between is the one: setdefault is atomic.
    return _libraries.setdefault(real, Library(real))


def _text(field: Sequence[int]) -> str:
    """Return a field that is padded with blanks, which some libraries end with a zero."""
    return bytes(field).split(b"\0", 1)[0].decode("utf-8", "replace").strip()
