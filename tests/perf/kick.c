/* What a kick and its answer cost at least: one process, two eventfds, nothing else. */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int kick = atoi(argv[1]), call = atoi(argv[2]);
	uint64_t count, one = 1;

	while (read(kick, &count, sizeof count) == sizeof count)
		if (write(call, &one, sizeof one) != sizeof one)
			return 1;
	return 0;
}
