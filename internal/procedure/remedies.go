package procedure

// ManyParked is from how many on parked clusters are not named in a command
// that means all of them anyway.
const ManyParked = 4

// Remedies are the commands, each by its arguments, that have a procedure go on
// which waits for a person, the likeliest first; none if it is neither paused nor
// has parked anything.
func Remedies(name, mesh, paused string, parked []ClusterProgress) [][]string {
	var commands [][]string
	if paused != "" {
		commands = append(commands, []string{"resume", mesh})
	}
	if len(parked) > 0 {
		names := make([]string, len(parked))
		for i, cluster := range parked {
			names[i] = cluster.Cluster
		}
		all := names
		if len(names) >= ManyParked {
			all, names = nil, []string{"CLUSTER..."}
		}
		commands = append(commands,
			append([]string{"retry", mesh}, all...),
			append(append([]string{LeaveOut(name), mesh}, names...), "--reason", "WHY"))
	}
	if len(commands) > 0 {
		commands = append(commands, []string{"abort", mesh, "--reason", "WHY"})
	}
	return commands
}

// LeaveOut is the update, and the command, that leaves clusters out of a
// procedure.
func LeaveOut(name string) string {
	switch name {
	case RotateRootCA, RotateIntermediateCA, RotateLeafCertificates, EmergencyReissue:
		return QuarantineUpdate
	}
	return SkipUpdate
}
