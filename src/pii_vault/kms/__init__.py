"""The customer's KMS: one protocol, one adapter a file. Importing this package imports no adapter."""

from .base import GeneratedKey as GeneratedKey
from .base import KmsKey as KmsKey
from .base import KmsKeyDescription as KmsKeyDescription
from .base import KmsKeyOwner as KmsKeyOwner
from .base import KmsLifecycle as KmsLifecycle
from .base import KmsProber as KmsProber
from .base import KmsProvider as KmsProvider
from .base import KmsRotation as KmsRotation
from .base import KmsRotationHistory as KmsRotationHistory
from .base import KmsRotationOwner as KmsRotationOwner
from .base import KmsRotationStatus as KmsRotationStatus
from .base import Ruling as Ruling
from .base import Trial as Trial
from .base import WrappedKey as WrappedKey
