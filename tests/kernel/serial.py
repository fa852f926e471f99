"""The serial ports of an mtty device, through its BARs: a state worth moving."""

from __future__ import annotations

from vfioflow import KernelDevice

DATA, DIVISOR_HIGH, FIFO, LINE, MODEM, STATUS, SCRATCH = 0, 1, 2, 3, 4, 5, 7
DLAB = 0x80


class Serial:
    """One port: BAR 0 or 1."""

    def __init__(self, device: KernelDevice, port: int) -> None:
        self.device, self.port = device, port

    def get(self, register: int) -> int:
        return self.device.read_region(self.port, register, 1)[0]

    def put(self, register: int, value: int) -> None:
        self.device.write_region(self.port, register, bytes([value]))

    def configure(self, seed: int, text: bytes) -> None:
        """Registers that tell ports apart, and bytes that wait in the FIFO."""
        self.put(LINE, DLAB)
        self.put(DATA, 1 + seed)
        self.put(DIVISOR_HIGH, 2 + seed)
        self.put(LINE, 0x1B - seed % 2)
        self.put(FIFO, 0xC1)
        self.put(MODEM, 0x13)
        self.put(SCRATCH, 0x50 + seed)
        for byte in text:
            self.put(DATA, byte)

    def registers(self) -> list[int]:
        line = self.get(LINE)
        self.put(LINE, line | DLAB)
        divisor = [self.get(DATA), self.get(DIVISOR_HIGH)]
        self.put(LINE, line)
        return [line, self.get(MODEM), self.get(SCRATCH), *divisor]

    def waiting(self) -> bytes:
        """Takes the bytes that wait in the FIFO."""
        taken = bytearray()
        while self.get(STATUS) & 1:
            taken.append(self.get(DATA))
        return bytes(taken)


def fill(device: KernelDevice, number: int, ports: int = 2) -> list[object]:
    """Give a device a state, and say what must be read back."""
    seen: list[object] = []
    for port in range(ports):
        serial = Serial(device, port)
        text = f"device {number}.{port}".encode()
        serial.configure(number * 4 + port, text)
        seen.append([serial.registers(), text.decode()])
    return seen


def read_back(device: KernelDevice, ports: int = 2) -> list[object]:
    """The state of a device; takes the bytes."""
    serials = [Serial(device, port) for port in range(ports)]
    return [[serial.registers(), serial.waiting().decode()] for serial in serials]
