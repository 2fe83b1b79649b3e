"""asherah: one factory for each tenant, since a factory has one master key.

It makes new keys when old ones have reached an age of minutes at least, so there is one version here.
"""

from __future__ import annotations

import os

import asherah

from . import Place


class Asherah:
    def __init__(self, place: Place) -> None:
        self._sessions = {}
        region = os.environ["AWS_REGION"]
        for name, arn in place.keys.items():
            settings = {
                "ServiceName": "bench",
                "ProductID": name,
                "Metastore": "rdbms",
                "ConnectionString": f"sqlite://{place.folder}/asherah-{name}.sqlite3",
                "KMS": "aws",
                "RegionMap": {region: arn},
                "PreferredRegion": region,
            }
            self._sessions[name] = asherah.SessionFactory(settings).get_session(name)

    def next_version(self) -> None:
        """That is a matter of age."""

    def seal(self, tenant: str, text: str) -> bytes:
        return self._sessions[tenant].encrypt_text(text).encode()

    def open(self, tenant: str, sealed: bytes) -> str:
        return str(self._sessions[tenant].decrypt_text(sealed.decode()))
