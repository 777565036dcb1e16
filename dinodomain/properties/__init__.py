"""What DINO features are known for, on one's own data: figures and numbers beside the untrained network and raw pixels."""

from dinodomain import callable_room
from dinodomain.properties.plan import NAMES, PropertiesPlan
from dinodomain.properties.report import Number, PropertiesReport, Property
from dinodomain.properties.verb import properties

__all__ = ["NAMES", "Number", "PropertiesPlan", "PropertiesReport", "Property", "properties"]

callable_room(__name__)
