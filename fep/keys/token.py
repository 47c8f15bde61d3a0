"""A PKCS#11 token as a slot's key: which token it is, its PIN, its signatures; blocking calls.

A token is known by its serial or label and the certificate in it, never by its slot's number. Slot
events of PKCS#11 are not used: whether the token is there is asked again and again (``TokenWatch``)
in the slot's own thread.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import attrs

from fep.adapters.card import SignAlgorithm
from fep.keys.config import ObjectRef, SlotConfig, TokenBinding
from fep.keys.cryptoki import (
    CKA_ALWAYS_AUTHENTICATE,
    CKA_CERTIFICATE_TYPE,
    CKA_CLASS,
    CKA_ID,
    CKA_LABEL,
    CKA_VALUE,
    CKC_X_509,
    CKF_LOGIN_REQUIRED,
    CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_LOCKED,
    CKM_ECDSA,
    CKM_ECDSA_SHA256,
    CKM_RSA_PKCS,
    CKM_SHA256_RSA_PKCS,
    CKO_CERTIFICATE,
    CKO_PRIVATE_KEY,
    CKU_CONTEXT_SPECIFIC,
    CKU_USER,
    Library,
    Token,
    library_at,
)
from fep.keys.device import Identity, PinNotAcceptedError
from fep.keys.errors import (
    CKR_OK,
    CKR_PIN_INCORRECT,
    CKR_PIN_INVALID,
    CKR_PIN_LEN_RANGE,
    CKR_PIN_LOCKED,
    CKR_USER_ALREADY_LOGGED_IN,
    LIBRARY_GONE,
    CardDataError,
    CryptokiError,
    DeviceError,
    PinWithheldError,
    SignOutcomeUnknownError,
    TokenAbsentError,
    WrongCardError,
)
from fep.keys.piv import PinAccepted, PinAnswer, PinCounter, PinRefused
from fep.keys.signatures import (
    CardKey,
    Certificate,
    algorithm_of,
    check_algorithm,
    der_signature,
    fingerprint,
    parse_certificate,
    token_block,
    verifies,
)

TOKENS_NAMED_MAX: Final = 8
"""Tokens that an operator is told of where the bound one is missing."""

_REFUSALS: Final = frozenset({CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE})
_NO_COUNT: Final = PinCounter(None, exact=False)

_MECHANISMS: Final = {
    SignAlgorithm.RSA_SHA256: (CKM_RSA_PKCS, CKM_SHA256_RSA_PKCS),
    SignAlgorithm.ECDSA_SHA256: (CKM_ECDSA, CKM_ECDSA_SHA256),
}
"""By which mechanism a token signs, the first that it has: the one over a digest made here costs
the line to the token 51 or 32 bytes, the other the whole message."""
_HASHES_ITSELF: Final = frozenset({CKM_SHA256_RSA_PKCS, CKM_ECDSA_SHA256})


@attrs.frozen
class Sight:
    """What a library shows at one moment."""

    slots: bool
    """Whether it has any slot."""
    tokens: tuple[Token, ...]
    """Those that are what the slot is bound to: none, one, or more by mistake."""
    others: str
    """The other tokens, for people."""


def look(library: Library, binding: TokenBinding) -> Sight:
    """Return which of the library's tokens are the bound one; the library looks for new slots."""
    slot_ids = library.slot_ids()
    tokens = [token for one in slot_ids if (token := token_in(library, one)) is not None]
    fitting = tuple(token for token in tokens if fits(binding, token))
    # A token without a label was never initialised (SoftHSM always shows one).
    others = [str(one) for one in tokens if one not in fitting and one.label]
    named = ", ".join(others[:TOKENS_NAMED_MAX])
    return Sight(bool(slot_ids), fitting, named)


def fits(binding: TokenBinding, token: Token) -> bool:
    """Say whether it is the bound token, by what it says of itself."""
    return binding.serial in {"", token.serial} and binding.label in {"", token.label}


def token_in(library: Library, slot_id: int) -> Token | None:
    """Return the token in a slot, None where there is none that answers."""
    try:
        return library.token(slot_id)
    except CryptokiError as error:
        # A neighbour's fault is none of this slot's; one of the library is everybody's.
        if error.number in LIBRARY_GONE:
            raise
        return None


class TokenWatch:
    """Looks whether a slot's token is there; keeps its library in use between two looks."""

    def __init__(self, config: SlotConfig) -> None:
        assert config.module is not None
        assert config.token is not None
        self._library = library_at(config.module)
        self._binding = config.token
        self._acquired = False
        self._last: Token | None = None

    def look(self) -> Sight:
        """Return what is there; while the token stays in its slot only that slot is asked.

        Raises:
            BackendUnavailableError, CardDataError, CryptokiError: the library does not answer as it
                should. The next look has it started anew, if no other slot is using it.
        """
        try:
            if not self._acquired:
                self._library.acquire()
                self._acquired = True
            if self._last is not None:
                seen = token_in(self._library, self._last.slot_id)
                if seen is not None and fits(self._binding, seen):
                    self._last = seen
                    return Sight(slots=True, tokens=(seen,), others="")
            sight = look(self._library, self._binding)
        except DeviceError:
            self.close()
            raise
        self._last = sight.tokens[0] if len(sight.tokens) == 1 else None
        return sight

    def close(self) -> None:
        """Let go of the library; may be called again."""
        self._last = None
        if self._acquired:
            self._acquired = False
            self._library.release()


class Pkcs11Device:
    """The bound token, with one session; see ``KeyDevice``.

    A log-in counts for all sessions of a process, so a token belongs to one slot, and opening it
    ends what an earlier session left behind.
    """

    def __init__(self, config: SlotConfig) -> None:
        assert config.module is not None
        assert config.token is not None
        self.forsaken = False
        self._holder: Final = config.name
        self._binding: Final[TokenBinding] = config.token
        self._wanted: Final[ObjectRef] = config.object
        self._shared: Final = library_at(config.module)
        self._acquired = False
        self._token: Token | None = None
        self._session = 0
        self._public: CardKey | None = None
        """The bound certificate's key."""
        self._key_id: bytes | None = None
        self._key: int | None = None
        self._mechanism = 0
        self._asks_each_time = False
        self._after_login = _NO_COUNT
        """What the flags told when the PIN had just been accepted, which restores all tries: some
        libraries (OpenSC) go on telling what was before."""

    @property
    def _library(self) -> Library:
        """The library, for one call more."""
        if self.forsaken:
            raise CardDataError("the slot gave up on this call")
        return self._shared

    def open(self) -> None:
        """Find the token and open a session of its own on it, not logged in."""
        self._shared.acquire()
        self._acquired = True
        token = self._find_token()
        if not self._library.hold(token.slot_id, self._holder):
            msg = f"token {token} is held by another slot of this configuration"
            raise CardDataError(msg)
        self._token = token
        self._open_session()

    def identify(self) -> Identity:
        """Return the token's serial and the bound certificate, or another one it carries."""
        assert self._token is not None
        seen = self._library.token(self._token.slot_id)
        if seen is None or not fits(self._binding, seen):
            raise TokenAbsentError("the token went while it was being read")
        self._public, self._key_id = None, None
        bound: Certificate | None = None
        other: Certificate | None = None
        template = {CKA_CLASS: CKO_CERTIFICATE, CKA_CERTIFICATE_TYPE: CKC_X_509}
        for one in self._library.find(self._session, template):
            der = self._library.attribute(self._session, one, CKA_VALUE) or b""
            if fingerprint(der) == self._binding.certificate_sha256:
                bound = parse_certificate(der)
                self._public = bound.card_key
                self._key_id = self._library.attribute(self._session, one, CKA_ID)
                break
            other = other or _certificate(der)
        wants_pin = bool(seen.flags & CKF_LOGIN_REQUIRED)
        return Identity(seen.serial, bound or other, wants_pin=wants_pin)

    def pin_counter(self) -> PinCounter:
        """Return what the token's flags tell of the tries left; that spends none."""
        return _counter(self._flags())

    def verify_pin(self, pin: str) -> PinAnswer:
        """Log in with the PIN once."""
        answer = self._library.login(self._session, CKU_USER, pin)
        if answer == CKR_USER_ALREADY_LOGGED_IN:
            # A log-in that outlived its session: the PIN was not looked at, so that this is no
            # second try.
            self._open_session()
            answer = self._library.login(self._session, CKU_USER, pin)
        if answer == CKR_OK:
            return PinAccepted()
        return self._refusal(answer)

    def prepare(self) -> None:
        """Find the private key, which a token shows only after the log-in.

        Raises:
            CardDataError: there is none, more than one, or none that signs as we do.
        """
        assert self._token is not None
        assert self._public is not None
        self._after_login = _counter(self._flags())
        self._key = self._find_key()
        always = self._library.attribute(self._session, self._key, CKA_ALWAYS_AUTHENTICATE)
        self._asks_each_time = bool(always and any(always))
        algorithm = algorithm_of(self._public)
        usable = [
            one
            for one in _MECHANISMS[algorithm]
            if self._library.can_sign(self._token.slot_id, one)
        ]
        if not usable:
            msg = f"the token has no mechanism for {algorithm.value}"
            raise CardDataError(msg)
        self._mechanism = usable[0]

    def sign(self, algorithm: SignAlgorithm, data: bytes, pin: str | None) -> bytes:
        """Return a signature that verifies against the certificate; see ``KeyDevice``.

        The PIN is sent only to a key that wants it for each signature (CKA_ALWAYS_AUTHENTICATE).
        """
        assert self._public is not None
        assert self._key is not None
        public = self._public
        check_algorithm(public, algorithm)
        block = data if self._mechanism in _HASHES_ITSELF else token_block(public, data)
        self._library.sign_init(self._session, self._mechanism, self._key)
        if self._asks_each_time:
            self._authenticate(pin)
        try:
            raw = self._library.sign(self._session, block)
        except CryptokiError as error:
            msg = f"the line to the token broke inside the signature ({error})"
            raise SignOutcomeUnknownError(msg) from error
        signature = raw if algorithm is SignAlgorithm.RSA_SHA256 else der_signature(raw)
        if not verifies(public, algorithm, data, signature):
            raise WrongCardError("the signature is not that of the bound certificate's key")
        return signature

    def close(self) -> None:
        """End the session, which logs out, and let go of the token; raises nothing."""
        token, self._token = self._token, None
        self._key = self._public = None
        if not self._acquired:
            return
        self._acquired = False
        if token is not None:
            # Of a token that is gone there is nothing left to end.
            with suppress(CryptokiError):
                self._shared.close_all_sessions(token.slot_id)
            self._shared.let_go(token.slot_id, self._holder)
        self._shared.release()

    def _find_token(self) -> Token:
        sight = look(self._library, self._binding)
        if not sight.tokens:
            raise TokenAbsentError("the token is in no slot of its library")
        if len(sight.tokens) > 1:
            listed = ", ".join(f"{one} in slot {one.slot}" for one in sight.tokens)
            msg = f"more than one token is the bound one, give serial and label: {listed}"
            raise CardDataError(msg)
        return sight.tokens[0]

    def _open_session(self) -> None:
        assert self._token is not None
        self._library.close_all_sessions(self._token.slot_id)
        # After a removal some libraries (OpenSC) take no log-in before they have looked anew.
        self._library.slot_ids()
        self._session = self._library.open_session(self._token.slot_id)

    def _flags(self) -> int:
        assert self._token is not None
        seen = self._library.token(self._token.slot_id)
        if seen is None:
            raise TokenAbsentError("the token is in its slot no more")
        return seen.flags

    def _refusal(self, answer: int) -> PinRefused:
        """Return what a log-in's answer means that did not succeed.

        Raises:
            CryptokiError: it says nothing of the PIN.
        """
        if answer == CKR_PIN_LOCKED:
            return PinRefused(0)
        if answer not in _REFUSALS:
            raise CryptokiError("C_Login", answer)
        left = _counter(self._flags())
        return PinRefused(left.tries if left.tries in {0, 1} else None)

    def _find_key(self) -> int:
        template: dict[int, int | bytes] = {CKA_CLASS: CKO_PRIVATE_KEY}
        if self._wanted.label:
            template[CKA_LABEL] = self._wanted.label.encode()
        if self._wanted.id:
            template[CKA_ID] = bytes.fromhex(self._wanted.id)
        elif not self._wanted.label and self._key_id:
            template[CKA_ID] = self._key_id
        found = self._library.find(self._session, template)
        if len(found) != 1:
            how = "no private key" if not found else f"{len(found)} private keys"
            msg = (
                f"the token has {how} by the configured object, or by the certificate's CKA_ID; "
                "say which in object = { id = …, label = … }"
            )
            raise CardDataError(msg)
        return found[0]

    def _authenticate(self, pin: str | None) -> None:
        """Send the PIN for the signature that was begun.

        Raises:
            PinWithheldError: there is none to send, or a wrong one would be the last.
            PinNotAcceptedError: the token refused it.
        """
        counter = _counter(self._flags())
        is_last = counter.tries in {0, 1} and counter != self._after_login
        if pin is None or is_last:
            msg = "the key wants its PIN for each signature, and none may be sent now"
            raise PinWithheldError(msg)
        answer = self._library.login(self._session, CKU_CONTEXT_SPECIFIC, pin)
        if answer == CKR_OK:
            return
        refusal = self._refusal(answer)
        # A session that has begun a signature can't begin another: this ends it, and logs out.
        self._open_session()
        raise PinNotAcceptedError(refusal.tries)


def _counter(flags: int) -> PinCounter:
    """Return a token's flags as a counter: exact only where it is at one or zero."""
    if flags & CKF_USER_PIN_LOCKED:
        return PinCounter(0, exact=False)
    if flags & CKF_USER_PIN_FINAL_TRY:
        return PinCounter(1, exact=False)
    if flags & CKF_USER_PIN_COUNT_LOW:
        return PinCounter(2, exact=False)
    return _NO_COUNT


def _certificate(der: bytes) -> Certificate | None:
    try:
        return parse_certificate(der)
    except CardDataError:
        return None
