"""The files of the contract, as a program has them that imports one."""

from google.protobuf.descriptor import FileDescriptor


def imported_publicly(file: FileDescriptor) -> tuple[FileDescriptor, ...]:
    """A file, and all that it gives a program: its public imports, and theirs."""
    given = {file.name: file}
    for imported in file.public_dependencies:
        given |= {one.name: one for one in imported_publicly(imported)}
    return tuple(given.values())
