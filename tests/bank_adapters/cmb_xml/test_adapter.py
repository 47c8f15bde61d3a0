"""What the package exports."""

import attrs
import pytest

from bank_adapters.cmb_xml import ADAPTER
from bank_adapters.cmb_xml.codec import CmbXmlCodec
from bank_adapters.cmb_xml.host import HOST
from fep.adapters.card import override
from fep.domain.errors import ConfigError
from fep.domain.order import Kind
from tests.bank_adapters.cmb_xml.samples import codec


@pytest.mark.req("CARD-06")
def test_adapter_and_host_have_one_name() -> None:
    assert ADAPTER.name == HOST.name == "cmb_xml"
    assert ADAPTER.version == ADAPTER.card.identity.version == "4.3.1"
    assert Kind.TRANSFER in ADAPTER.capabilities


def test_open_gives_the_codec() -> None:
    assert isinstance(ADAPTER.open(codec().profile), CmbXmlCodec)


def test_open_refuses_what_it_can_not_use() -> None:
    profile = codec().profile
    card = override(profile.card, {"signing": {"by": "sign_port"}})
    with pytest.raises(ConfigError, match="sign port"):
        ADAPTER.open(attrs.evolve(profile, card=card))
    with pytest.raises(ConfigError, match="options"):
        ADAPTER.open(attrs.evolve(profile, options={}))
