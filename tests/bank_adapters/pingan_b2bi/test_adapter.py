from __future__ import annotations

import attrs

from bank_adapters.pingan_b2bi import ADAPTER
from bank_adapters.pingan_b2bi.config import PinganOptions
from bank_adapters.pingan_b2bi.host import HOST
from fep.adapters.api import BankAdapter, BankCodec, Framer
from fep.adapters.card import NoRecord, Resend, Signer
from fep.adapters.host import BankHost, HostConnection
from fep.domain.order import Kind
from tests.bank_adapters.pingan_b2bi.samples import Bank, profile


def test_it_has_the_shape_of_an_adapter_and_of_a_host() -> None:
    adapter: BankAdapter = ADAPTER
    host: BankHost = HOST
    one: BankCodec = adapter.open(profile())
    framer: Framer = one.framer()
    connection: HostConnection = host.open(Bank().profile)
    assert framer.receive_data(b"") == []
    assert connection.receive_data(b"") == []
    assert (adapter.name, host.name) == ("pingan_b2bi", "pingan_b2bi")
    assert (adapter.version, adapter.title) == ("2.0", "平安银行 银企直联 B2Bi")
    assert adapter.options_class is PinganOptions


def test_it_declares_what_it_has() -> None:
    assert ADAPTER.capabilities == {
        Kind.BALANCE,
        Kind.TRANSFER,
        Kind.BATCH_TRANSFER,
        Kind.TRANSFER_STATUS,
        Kind.STATEMENT,
        Kind.RETURNED_PAYMENTS,
        Kind.BANK_CODE_LOOKUP,
        Kind.POOL_SWEEP,
    }


def test_the_card_says_what_the_document_says() -> None:
    card = ADAPTER.card
    assert (card.dedupe.key, card.dedupe.length_max) == ("ThirdVoucher", 20)
    assert card.dedupe.resend is Resend.REJECT_DUP
    # Longer than any day: our clock may be wrong about when the bank's ends.
    assert card.inquiry.no_record is NoRecord.AFTER
    assert card.inquiry.no_record_after_s > 86_400
    assert card.inquiry.cool_down_s == 60
    assert card.signing.by is Signer.FRONT_END
    assert card.limits.frame_bytes_max == 4 * 1024 * 1024
    assert card.statement.today_separate
    assert card.states.final_ok == {"20"}
    assert card.states.final_bad == {"30"}


def test_every_option_has_a_default() -> None:
    assert all(field.default is not attrs.NOTHING for field in attrs.fields(PinganOptions))
