package mesh

// Overlay lays Helm values over others, at every depth: a map is merged into
// the map below it, anything else replaces what is there. The result shares no
// map with its arguments, since several charts may be at work on it at once.
func Overlay(values map[string]any, over ...map[string]any) map[string]any {
	merged := map[string]any{}
	for _, layer := range append([]map[string]any{values}, over...) {
		for k, v := range layer {
			if above, isMap := v.(map[string]any); isMap {
				below, _ := merged[k].(map[string]any)
				v = Overlay(below, above)
			}
			merged[k] = v
		}
	}
	return merged
}
