"""The ``opencl`` backend: kernels in OpenCL C for any device with an OpenCL driver.

``plugin`` holds the hooks; ``driver`` finds devices and turns OpenCL's errors into packhorse's;
``memory`` holds buffers and their pool; ``device`` the device; ``module`` its compiled programs.
"""
