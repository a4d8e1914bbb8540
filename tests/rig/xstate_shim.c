/*
 * LD_PRELOAD for linux.uml. It keeps 2,696 bytes of a process's xstate. Where the CPU's xstate is larger (AMX), the machine's
 * kernel refuses to set that few (EFAULT), and the guest panics in put_fp_registers while it boots. So what is set is padded to
 * the full size with what the process has there.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

static long set_registers(pid_t pid, struct iovec *given)
{
	static char buffer[65536] __attribute__((aligned(64)));
	struct iovec full = { buffer, sizeof buffer };

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &full) != 0 || full.iov_len <= given->iov_len)
		full = *given;
	else
		memcpy(buffer, given->iov_base, given->iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &full);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_SETREGSET && (unsigned long)address == NT_X86_XSTATE)
		return set_registers(pid, data);
	/* The system call stores what the C library returns. */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word;
		long result = syscall(SYS_ptrace, request, pid, address, &word);
		if (result != 0)
			return result;
		errno = 0;
		return word;
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
