# SPDX-License-Identifier: LGPL-2.1-or-later

"""
BTF types as drgn types
-----------------------

:class:`BtfTypes` turns BTF types into the :class:`drgn.Type` that DWARF would
give, one by one as they are asked for: members are resolved when they are used.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Optional, Union

from drgn import (
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeKindSet,
    TypeMember,
    TypeParameter,
    sizeof,
)

from drgn_hvo.errors import FormatError
from drgn_hvo.formats.btf import Btf, BtfKind, BtfMember

__all__ = ("BtfTypes",)

_QUALIFIERS = {
    BtfKind.CONST: Qualifiers.CONST,
    BtfKind.VOLATILE: Qualifiers.VOLATILE,
    BtfKind.RESTRICT: Qualifiers.RESTRICT,
    # btf_type_tag("user") and its like: DWARF readers ignore them.
    BtfKind.TYPE_TAG: Qualifiers.NONE,
}

# What can be looked up by name, by drgn's kind.
_KINDS = {
    TypeKind.INT: (BtfKind.INT,),
    TypeKind.BOOL: (BtfKind.INT,),
    TypeKind.FLOAT: (BtfKind.FLOAT,),
    TypeKind.STRUCT: (BtfKind.STRUCT,),
    TypeKind.UNION: (BtfKind.UNION,),
    TypeKind.ENUM: (BtfKind.ENUM, BtfKind.ENUM64),
    TypeKind.TYPEDEF: (BtfKind.TYPEDEF,),
}

# The integer types that GCC gives enumerations, by size and sign.
_ENUM_COMPATIBLE = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "short unsigned int",
    (2, True): "short int",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "long unsigned int",
    (8, True): "long int",
}

_INT_SIZES = (1, 2, 4, 8, 16)

_BIT_FIELD_KINDS = (TypeKind.INT, TypeKind.BOOL, TypeKind.ENUM)

# Deeper nesting of pointers, arrays and typedefs than kernel source has.
_MAX_DEPTH = 128


def _require_size(kind: Type, what: str) -> None:
    """
    Make sure that a type is one that an object can have.

    :raises FormatError: if it has no size.
    """
    if kind.unaliased_kind() in (TypeKind.VOID, TypeKind.FUNCTION):
        raise FormatError(f"BTF is damaged: {what} has no size")


class BtfTypes:
    """
    drgn types made from BTF.

    :param prog: The program that the types belong to.
    """

    def __init__(self, prog: Program, btf: Btf) -> None:
        self._prog = prog
        self.btf = btf
        self._types: dict[int, Type] = {}
        # What was found by name: drgn asks anew each time that a helper names a type.
        self._found: dict[tuple[TypeKindSet, str], Optional[Type]] = {}
        self._depth = 0
        self._builders: dict[int, Callable[[int], Type]] = {
            BtfKind.INT: self._int,
            BtfKind.FLOAT: self._float,
            BtfKind.PTR: self._pointer,
            BtfKind.ARRAY: self._array,
            BtfKind.STRUCT: partial(self._compound, prog.struct_type),
            BtfKind.UNION: partial(self._compound, prog.union_type),
            BtfKind.FWD: self._forward,
            BtfKind.ENUM: self._enum,
            BtfKind.ENUM64: self._enum,
            BtfKind.TYPEDEF: self._typedef,
            BtfKind.FUNC: self._target,
            BtfKind.VAR: self._target,
            BtfKind.FUNC_PROTO: self._function,
            **dict.fromkeys(_QUALIFIERS, self._qualified),
        }

    def find(self, kinds: TypeKindSet, name: str) -> Optional[Type]:
        """The type with a name, of one of these kinds."""
        if (kinds, name) not in self._found:
            self._found[kinds, name] = self._find(kinds, name)
        return self._found[kinds, name]

    def _find(self, kinds: TypeKindSet, name: str) -> Optional[Type]:
        wanted = {kind for k in kinds for kind in _KINDS.get(k, ())}
        for type_id in self.btf.find(name, wanted) if wanted else ():
            found = self.type(type_id)
            if found.kind in kinds:
                return found
        return None

    def type(self, type_id: int) -> Type:
        """
        The drgn type of a BTF type.

        :raises FormatError: if it, or a type that it needs, cannot be read.
        """
        if type_id == 0:
            return self._prog.void_type()
        if type_id not in self._types:
            kind = self.btf.kind(type_id)
            if kind not in self._builders:
                raise FormatError(
                    f"BTF type {type_id} is of kind {kind}, which has no type in C"
                )
            if self._depth >= _MAX_DEPTH:
                raise FormatError(f"BTF is damaged: type {type_id} contains itself")
            self._depth += 1
            try:
                self._types[type_id] = self._builders[kind](type_id)
            except (OverflowError, ValueError) as e:
                raise FormatError(f"BTF is damaged: type {type_id}: {e}") from None
            finally:
                self._depth -= 1
        return self._types[type_id]

    def adopt(self, name: str, known: Type) -> None:
        """Let a structure that was made already be the type of its name."""
        for type_id in self.btf.find(name, [BtfKind.STRUCT]):
            self._types.setdefault(type_id, known)

    def _target(self, type_id: int) -> Type:
        return self.type(self.btf.target(type_id))

    def _int(self, type_id: int) -> Type:
        integer = self.btf.integer(type_id)
        if integer.size not in _INT_SIZES:
            raise FormatError(f"BTF is damaged: integer of {integer.size} bytes")
        if integer.is_bool:
            return self._prog.bool_type(integer.name, integer.size)
        return self._prog.int_type(integer.name, integer.size, integer.is_signed)

    def _float(self, type_id: int) -> Type:
        return self._prog.float_type(self.btf.name(type_id), self.btf.size(type_id))

    def _pointer(self, type_id: int) -> Type:
        return self._prog.pointer_type(self._target(type_id))

    def _array(self, type_id: int) -> Type:
        element, length = self.btf.array(type_id)
        element_type = self.type(element)
        _require_size(element_type, f"element of array {type_id}")
        return self._prog.array_type(element_type, length)

    def _typedef(self, type_id: int) -> Type:
        return self._prog.typedef_type(self.btf.name(type_id), self._target(type_id))

    def _qualified(self, type_id: int) -> Type:
        target = self._target(type_id)
        qualifier = _QUALIFIERS[BtfKind(self.btf.kind(type_id))]
        return target.qualified(target.qualifiers | qualifier)

    def _compound(self, make: Callable[..., Type], type_id: int) -> Type:
        members = [
            TypeMember(
                partial(self.member_type, member),
                member.name or None,
                member.bit_offset,
            )
            for member in self.btf.members(type_id)
        ]
        tag = self.btf.name(type_id) or None
        return make(tag, self.btf.size(type_id), members)

    def member_type(self, member: BtfMember) -> Union[Object, Type]:
        """
        The type of a member; of a bit field, an absent object that says its size.

        :raises FormatError: if it cannot be one.
        """
        member_type = self.type(member.type_id)
        _require_size(member_type, f"member {member.name}")
        if member.bit_size:
            unaliased = member_type.unaliased()
            if (
                unaliased.kind not in _BIT_FIELD_KINDS
                or not unaliased.is_complete()
                or member.bit_size > 8 * sizeof(unaliased)
            ):
                raise FormatError(f"BTF is damaged: bit field {member.name}")
            return Object(self._prog, member_type, bit_field_size=member.bit_size)
        return member_type

    def _forward(self, type_id: int) -> Type:
        """A declaration, or the only definition that it can mean."""
        is_union = self.btf.fwd_is_union(type_id)
        name = self.btf.name(type_id)
        kind = BtfKind.UNION if is_union else BtfKind.STRUCT
        if self.btf.unknown is None:
            definitions = self.btf.find(name, [kind])
            if len(definitions) == 1:
                return self.type(definitions[0])
        return (self._prog.union_type if is_union else self._prog.struct_type)(name)

    def _enum(self, type_id: int) -> Type:
        signed = self.btf.is_signed_enum(type_id)
        size = self.btf.size(type_id)
        name = self.btf.name(type_id) or None
        enumerators = [
            TypeEnumerator(enumerator.name, enumerator.value)
            for enumerator in self.btf.enumerators(type_id)
        ]
        if not enumerators:
            return self._prog.enum_type(name)
        if (size, signed) not in _ENUM_COMPATIBLE:
            raise FormatError(f"BTF is damaged: enumeration of {size} bytes")
        compatible = self._prog.int_type(_ENUM_COMPATIBLE[size, signed], size, signed)
        return self._prog.enum_type(name, compatible, enumerators)

    def _function(self, type_id: int) -> Type:
        params = list(self.btf.params(type_id))
        is_variadic = bool(params) and params[-1].type_id == 0
        parameters = [
            TypeParameter(partial(self.type, param.type_id), param.name or None)
            for param in (params[:-1] if is_variadic else params)
        ]
        return self._prog.function_type(
            self._target(type_id), parameters, is_variadic=is_variadic
        )
