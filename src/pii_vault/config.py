"""Settings: what the command, or an application that asks, is told by options, environment and one file.

Promise: a setting comes from the first of these that names it: option, variable, file, default. What cannot be used is
refused at once, by its name and where it came from; values are not quoted, because a database URL may hold a password.

Only the command imports this module, and whoever wants its settings: `import pii_vault` does without pydantic.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .errors import ConfigurationError
from .keystore.engine import SCHEMA_NAMES, can_be_schema, open_engine

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from .kms import KmsKeyOwner, KmsLifecycle, KmsRotationOwner
    from .onboarding.arrangement import Arrangement
    from .onboarding.onboard import KeyMaker
    from .vault import Vault

FILE_NAME: Final = "pii-vault.toml"
"""The file that is read when it lies in the working folder."""

FILE_VARIABLE: Final = "PII_VAULT_CONFIG"
"""The variable that names another file."""

_PREFIX: Final = "PII_VAULT_"
_PLACE: Final = re.compile(r"\(at (line \d+, column \d+|end of document)\)")
_ROLE: Final = r"^arn:[^:]+:iam::\d{12}:role/.+$"
_ROLE_NAMES: Final = "the ARN of an IAM role, arn:aws:iam::<account>:role/<name>"
_ESCAPE: Final = "in a password, write % as %25 and @ as %40"


class Settings(BaseSettings):
    """What a vault is made from. A field's description says which values it takes.

    Attributes:
        database_url: The key store's database. It may hold a password, so it is never shown.
        database_schema: PostgreSQL's schema that the key store has for itself there; None for where the search path
            leads.
        application_url: The application's own database, if that is another; likewise.
        kms: Where the customers' KMS keys are.
        endpoint_url: Another endpoint for AWS KMS: a VPC endpoint, a test server.
        platform_key: A KMS key of our own, not a customer's, for the audit key and for tenants without a key of their
            own. A local KMS brings one.
        ttl: How long a tenant's keys stay in memory after the KMS was last asked.
        grace: How long they may be used beyond that while the KMS or the key store cannot be reached.
        rotation_days: How often data keys are rotated, for tenants that name no period.
        actor: Who is written into the audit log; None for the system's user.
        runtime_role: Our own role that the application runs as: what a customer's policies name.
        rotation_role: Our own role that rotates, re-wraps and onboards; likewise.
        provisioning_role: Our own role that makes KMS keys in customers' accounts, where it is we who make them.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(None, description="postgresql+psycopg://user@host/name or sqlite:///file")
    database_schema: str | None = Field(None, description=SCHEMA_NAMES)
    application_url: SecretStr | None = Field(None, description="postgresql+psycopg://user@host/name or sqlite:///file")
    kms: str = Field("aws", pattern=r"^(aws|local:.+)$", description="aws or local:PATH")
    endpoint_url: str | None = Field(None, pattern=r"^https?://.+$", description="an http:// or https:// address")
    # An alias can be pointed elsewhere by whoever may write aliases, so only a key's own ARN will do.
    platform_key: str | None = Field(
        None,
        pattern=r"^arn:[^:]+:kms:[^:]+:[^:]+:key/.+$",
        description="the full ARN of a key, arn:aws:kms:<region>:<account>:key/<key id>, not an alias",
    )
    ttl: float = Field(300.0, ge=0, allow_inf_nan=False, description="a number of seconds, 0 or more")
    grace: float = Field(0.0, ge=0, allow_inf_nan=False, description="a number of seconds, 0 or more")
    rotation_days: int = Field(365, ge=1, le=3650, description="a whole number of days from 1 to 3650")
    actor: str | None = Field(None, min_length=1, max_length=255, description="a name of 1 to 255 characters")
    runtime_role: str | None = Field(None, pattern=_ROLE, description=_ROLE_NAMES)
    rotation_role: str | None = Field(None, pattern=_ROLE, description=_ROLE_NAMES)
    provisioning_role: str | None = Field(None, pattern=_ROLE, description=_ROLE_NAMES)

    @field_validator("ttl", "grace", "rotation_days", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object) -> object:
        # To Python true is 1: a second or a day that nobody asked for.
        if isinstance(value, bool):
            raise ValueError
        return value

    @field_validator("database_schema")
    @classmethod
    def _can_be_schema(cls, value: str | None) -> str | None:
        if value is not None and not can_be_schema(value):
            raise ValueError
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first."""
        return init_settings, env_settings, _file_source(settings_cls)

    def make_kms(self) -> KmsLifecycle:
        """Make the KMS that `kms` and `endpoint_url` name.

        Raises:
            ConfigurationError: a local KMS with an endpoint or with a file that cannot be used, or no boto3.
        """
        kind, _, path = self.kms.partition(":")
        if kind == "aws":
            from .kms.aws import AwsKms

            return AwsKms(endpoint_url=self.endpoint_url)
        if self.endpoint_url is not None:
            raise ConfigurationError("a local KMS has no endpoint_url", hint="leave it out, or set kms to aws")
        from .kms.local import LocalKms

        return LocalKms(path)

    def make_key_owner(self) -> KmsKeyOwner:
        """Make who may end our own KMS keys, with the credentials of whoever runs this.

        Raises:
            ConfigurationError: as `make_kms`.
        """
        from .kms.local import LocalKms

        kms = self.make_kms()
        if isinstance(kms, LocalKms):
            return kms
        from .kms.aws_admin import AwsKeyOwner

        return AwsKeyOwner(endpoint_url=self.endpoint_url)

    def make_key_maker(self, arrangement: Arrangement) -> KeyMaker:
        """Make who makes a customer's KMS key: the role that the customer lends us, assumed.

        Raises:
            ConfigurationError: the KMS is a local one.
            KmsDeniedError: the role cannot be assumed, or not yet.
        """
        if self.kms != "aws" or arrangement.provisioning_role is None:
            raise ConfigurationError("only in AWS is a KMS key made by a role", hint="leave out --create-key")
        from .kms.aws_provisioning import AwsProvisioning

        return AwsProvisioning(
            arrangement.provisioning_role,
            arrangement.external_id,
            arrangement.region,
            through=arrangement.ours.provisioning,
            endpoint_url=self.endpoint_url,
        )

    def make_rotation_owner(self, role_arn: str | None = None, external_id: str | None = None) -> KmsRotationOwner:
        """Make who may say how often a KMS key rotates, with the credentials of whoever runs this.

        Args:
            role_arn: The role in the key's account to assume with them, or None.
            external_id: The ExternalId for that role, or None.

        Raises:
            ConfigurationError: as `make_kms`, or a role for a local KMS.
        """
        from .kms.local import LocalKms

        kms = self.make_kms()
        if isinstance(kms, LocalKms):
            if role_arn is not None or external_id is not None:
                raise ConfigurationError("a local KMS has no role to assume", hint="leave it out")
            return kms
        from .kms.aws_admin import AwsRotationOwner

        return AwsRotationOwner(endpoint_url=self.endpoint_url, role_arn=role_arn, external_id=external_id)

    def make_engine(self) -> Engine:
        """Make an engine on the key store's database.

        Raises:
            ConfigurationError: no URL is set, it cannot be read, or its driver is missing. The URL is not shown.
        """
        return self._engine("database_url")

    def make_application_engine(self) -> Engine:
        """Make an engine on the application's own database: the key store's, unless another is named.

        Raises:
            ConfigurationError: as `make_engine`.
        """
        return self._engine("database_url" if self.application_url is None else "application_url")

    def _engine(self, name: str) -> Engine:
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        url: SecretStr | None = getattr(self, name)
        if url is None:
            raise ConfigurationError(
                f"no {name} is set",
                hint=f"--{name.replace('_', '-')}, {_variable(name)}, or the file {FILE_NAME}",
            )
        try:
            engine = open_engine(url.get_secret_value())
        except NoSuchModuleError:
            reason, hint = f"SQLAlchemy knows no such database as {name} names", _expected(name)
        except ModuleNotFoundError as error:
            reason = f"the database driver {error.name} is not installed"
            hint = "pip install 'pii-vault[postgres]' brings the one for postgresql+psycopg://"
        except ConfigurationError:  # a ValueError too
            raise
        except (ArgumentError, ValueError):
            reason, hint = f"{name} cannot be read", f"{_expected(name)}; {_ESCAPE}"
        else:
            if not _may_show_password(engine.url):
                return engine
            reason, hint = f"{name} has an @ too many", _ESCAPE
        raise ConfigurationError(reason, hint=hint)

    def make_vault(self) -> Vault:
        """Make the vault.

        Raises:
            ConfigurationError: as `make_engine` and `make_kms`, or a local KMS for a database on another machine.
        """
        from .vault import Vault

        # By its URL, because a vault closes the connections that it opened itself. This engine has opened none.
        return Vault(
            self.make_engine().url,
            kms=self.make_kms(),
            schema=self.database_schema,
            platform_key=self.platform_key,
            ttl=self.ttl,
            grace=self.grace,
            rotation_days=self.rotation_days,
            actor=self.actor,
        )


def load(**options: Any) -> Settings:
    """Return the settings; an option that is None was not given.

    Raises:
        ConfigurationError: a value or a name that cannot be used, or a file that cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = {str(each["loc"][0]): None for each in error.errors(include_input=False, include_context=False)}
    # Raised out here, where the error that holds the values is not its context.
    problems = [_problem(name, _origin(name, given)) for name in wrong]
    raise ConfigurationError("; ".join(text for text, _ in problems), hint="; ".join(hint for _, hint in problems))


def settings_file() -> Path | None:
    """Return the file that is read: the one that `PII_VAULT_CONFIG` names, or `pii-vault.toml` if it is here.

    Raises:
        ConfigurationError: the named file is missing, or it is no file.
    """
    named = os.environ.get(FILE_VARIABLE)
    file = Path(named).expanduser() if named else Path(FILE_NAME)
    if os.path.isfile(file):
        return file
    # A link that leads nowhere was meant to lead somewhere.
    if named or os.path.lexists(file):
        source = f", which {FILE_VARIABLE} names," if named else ""
        raise ConfigurationError(f"{file}{source} is not a file that can be read", hint="create it, or name another")
    return None


def _file_source(settings: type[BaseSettings]) -> TomlConfigSettingsSource:
    file = settings_file()
    try:
        return TomlConfigSettingsSource(settings, file)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        reason = f"{file} is not TOML{f', at {place[1]}' if place else ''}"
    except UnicodeDecodeError:
        reason = f"{file} is not TOML: it is not UTF-8"
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror}"
    raise ConfigurationError(reason, hint='a line is: name = "text", or: name = number')


def _problem(name: str, origin: str) -> tuple[str, str]:
    """Return what is wrong with a setting, and the way out."""
    if name in Settings.model_fields:
        return f"{origin} cannot be used", f"{name} is {_expected(name)}"
    near = difflib.get_close_matches(name, Settings.model_fields, 1)
    known = ", ".join(sorted(Settings.model_fields))
    return f"{origin} is not a setting", f"did you mean {near[0]}?" if near else f"the settings are {known}"


def _origin(name: str, given: dict[str, Any]) -> str:
    if name in given:
        return f"the option --{name.replace('_', '-')}"
    # Names of variables are compared without case, as pydantic-settings does.
    if any(each.upper() == _variable(name) and value for each, value in os.environ.items()):
        return f"the variable {_variable(name)}"
    return f"{name} in {settings_file()}"


def _may_show_password(url: URL) -> bool:
    """Tell whether a part of the password may stand in another part of the URL, which messages show.

    SQLAlchemy ends the password at its first @.
    """
    # One @ begins the name of a socket.
    return url.password is not None and "@" in f"{(url.host or '')[1:]}{url.database or ''}"


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _expected(name: str) -> str:
    return Settings.model_fields[name].description or ""
