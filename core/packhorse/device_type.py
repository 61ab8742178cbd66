"""DLPack's device types under names: what ``dlpack_device[0]`` and TVM's ``device_type`` mean."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["DeviceType"]


class DeviceType(IntEnum):
    """Where memory lies. An int wherever one is wanted: ``create(json, lib, DeviceType.CPU, 0)``.

    Knowing a number is not having the device: :func:`packhorse.device` opens those that a backend
    offers. 6 and ``OPENGL`` are TVM's own; 11 meant OpenGL until TVM 0.7.

    Source: DLPack 1.1, enum DLDeviceType; TVM 0.6, c_runtime_api.h.
    """

    CPU = 1
    CUDA = 2
    CUDA_HOST = 3
    OPENCL = 4
    SDACCEL = 6
    VULKAN = 7
    METAL = 8
    VPI = 9
    ROCM = 10
    ROCM_HOST = 11
    OPENGL = 11  # the same number: an alias
    EXT_DEV = 12
    CUDA_MANAGED = 13
    ONEAPI = 14
    WEBGPU = 15
    HEXAGON = 16
    MAIA = 17
    TRAINIUM = 18
