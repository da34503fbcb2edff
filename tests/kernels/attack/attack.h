// The attack guest: it is attacked by devices, or attacks one itself.
#pragma once

#include "../soak/traffic.h"

enum { NULL_DEVICE = 0xFFFF, REQUESTQ = 0, NEEDS_RESET = 64 };

// Whether the page that no device was ever given is as it was; it is, after this.
bool is_canary_intact(void);
extern uint8_t *const canary;

// Entropy, which has nothing to do with any of this: asks for some, and waits for it.
void ask_victim(void);
extern unsigned asked;

// How a chain ended, after at most so many cycles, in which the victim is asked again and again.
enum ending { ANSWERED, RESET_WANTED, NO_ANSWER };
enum ending await(struct device *device, uint16_t idx, uint64_t cycles);
extern const char endings[][12]; // no pointers, for nobody relocates the image

// Resets a device, if there was a driver before, and begins afresh.
void begin(struct device *device, uint64_t features);

// Breaks every rule that a disk and its registers have (hazards.c).
void try_hazards(struct device *disk, struct device *changing);
