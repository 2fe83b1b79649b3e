from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pii_vault import EncryptedString, LocalKms, Vault


class Base(DeclarativeBase): ...


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    email: Mapped[str] = mapped_column(EncryptedString())


kms = LocalKms("kms.json")  # for development; AwsKms() for customers' data
vault = Vault("sqlite://", kms=kms)
vault.create_all()
vault.add_tenant("acme", key=kms.create_key())  # in AWS: the full ARN of the customer's key

engine = create_engine("sqlite://")
vault.attach(engine, Session, tenant_column="tenant_id")
Base.metadata.create_all(engine)
with vault.tenant("acme"), Session(engine) as session, session.begin():
    session.add(Patient(email="ada@example.com"))
    print(session.scalar(select(Patient.email)))
    print(session.scalar(text("SELECT hex(email) FROM patients")))
