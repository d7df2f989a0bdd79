BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'octavo');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'octavo:schema','1');
INSERT INTO "study_user_attributes" VALUES(2,1,'octavo:fingerprint','{"model": "07c5e60309855400", "data": "ae071aac89670b6f", "space": "[\"50d76c9fe78eadd6\"]", "goal": "[{\"tolerance\":0.05},[\"size\"]]", "objectives": "{\"size\":{}}", "holdout": "{\"holdout_fn\":false}", "samples": "{}", "racing": "{}", "versions": "{\"octavo\":\"0.1.0\",\"torch\":{\"cpu\":\"AVX2\",\"torch\":\"2.13.0+cpu\"}}", "machine": "{\"architecture\":\"x86_64\",\"devices\":{\"torch\":\"cpu\"},\"instructions\":[\"avx2\"]}"}');
INSERT INTO "study_user_attributes" VALUES(3,1,'octavo:settings','{"rules": [], "transforms": null, "simulated": false, "backends": null, "strategy": "basic"}');
INSERT INTO "study_user_attributes" VALUES(4,1,'octavo:samples','null');
INSERT INTO "study_user_attributes" VALUES(5,1,'octavo:guard:began','true');
INSERT INTO "study_user_attributes" VALUES(6,1,'octavo:guard:done','true');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'octavo:recipe','"48f61cc88a09e61e"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "torch.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(3,1,'octavo:trial','"{\"number\": 0, \"recipe\": {\"backend\": \"torch\", \"transforms\": [], \"schemes\": {}, \"ops\": {}}, \"state\": \"complete\", \"metrics\": {\"score\": 1.0}, \"passed\": true, \"margin\": 1.0, \"objectives\": {\"size\": [4719.0, 4719.0, 4719.0, \"bytes\", 1.0, true]}, \"ledger\": {}, \"over\": {}, \"error\": \"\", \"seconds\": {\"evaluate\": 0.006735568998919916, \"measure\": 0.03226973900018493}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 2, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(4,2,'octavo:recipe','"bbbba459b96e420b"');
INSERT INTO "trial_user_attributes" VALUES(5,2,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "torch.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(6,2,'octavo:trial','"{\"number\": 1, \"recipe\": {\"backend\": \"torch\", \"transforms\": [], \"schemes\": {\"static w:int8/channel x:uint8-asym/tensor #cd107f\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"0\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"2\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"4\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.9375}, \"passed\": false, \"margin\": -0.24999999999999994, \"objectives\": {\"size\": [3486.0, 3486.0, 3486.0, \"bytes\", 0.7387158296249206, true]}, \"ledger\": {\"0\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"2\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"4\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.01506247900033486, \"evaluate\": 0.002669722000064212, \"measure\": 0.004309244999603834}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(7,3,'octavo:recipe','"dad153e8f863305a"');
INSERT INTO "trial_user_attributes" VALUES(8,3,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "torch.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(9,3,'octavo:trial','"{\"number\": 2, \"recipe\": {\"backend\": \"torch\", \"transforms\": [], \"schemes\": {\"static w:int8/channel x:int8/tensor #03c496\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"int8\"}}}, \"ops\": {\"0\": \"static w:int8/channel x:int8/tensor #03c496\", \"2\": \"static w:int8/channel x:int8/tensor #03c496\", \"4\": \"static w:int8/channel x:int8/tensor #03c496\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.96875}, \"passed\": true, \"margin\": 0.37500000000000006, \"objectives\": {\"size\": [3346.0, 3346.0, 3346.0, \"bytes\", 0.7090485272303454, true]}, \"ledger\": {\"0\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}], \"2\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}], \"4\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.015750512000522576, \"evaluate\": 0.010203169998931116, \"measure\": 0.008592565000071772}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(10,4,'octavo:recipe','"2546799c3ae1ef15"');
INSERT INTO "trial_user_attributes" VALUES(11,4,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "torch.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(12,4,'octavo:trial','"{\"number\": 3, \"recipe\": {\"backend\": \"torch\", \"transforms\": [], \"schemes\": {\"static w:int8/tensor x:uint8-asym/tensor #5671ea\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"0\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"2\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"4\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.984375}, \"passed\": true, \"margin\": 0.6875, \"objectives\": {\"size\": [3187.0, 3187.0, 3187.0, \"bytes\", 0.6753549480822209, true]}, \"ledger\": {\"0\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"2\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"4\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.022113205999630736, \"evaluate\": 0.007744487000309164, \"measure\": 0.004217150000840775}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(13,5,'octavo:recipe','"d37e68843d66dd6f"');
INSERT INTO "trial_user_attributes" VALUES(14,5,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "torch.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(15,5,'octavo:trial','"{\"number\": 4, \"recipe\": {\"backend\": \"torch\", \"transforms\": [], \"schemes\": {\"static w:int8/tensor x:int8/tensor #ca088d\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\"}, \"input\": {\"dtype\": \"int8\"}}}, \"ops\": {\"0\": \"static w:int8/tensor x:int8/tensor #ca088d\", \"2\": \"static w:int8/tensor x:int8/tensor #ca088d\", \"4\": \"static w:int8/tensor x:int8/tensor #ca088d\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.984375}, \"passed\": true, \"margin\": 0.6875, \"objectives\": {\"size\": [3047.0, 3047.0, 3047.0, \"bytes\", 0.6456876456876457, true]}, \"ledger\": {\"0\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}], \"2\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}], \"4\": [\"kernel\", \"its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"int8\"}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.014961841001422727, \"evaluate\": 0.009369403998789494, \"measure\": 0.0067536730002757395}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.0,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,4719.0,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.9375,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,3486.0,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,0.96875,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,3346.0,'FINITE');
INSERT INTO "trial_values" VALUES(7,4,0,0.984375,'FINITE');
INSERT INTO "trial_values" VALUES(8,4,1,3187.0,'FINITE');
INSERT INTO "trial_values" VALUES(9,5,0,0.984375,'FINITE');
INSERT INTO "trial_values" VALUES(10,5,1,3047.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 14:05:57.981236','2026-11-27 14:05:58.024710');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-27 14:05:58.072697','2026-11-27 14:05:58.122853');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-27 14:05:58.128895','2026-11-27 14:05:58.218681');
INSERT INTO "trials" VALUES(4,3,1,'COMPLETE','2026-11-27 14:05:58.233640','2026-11-27 14:05:58.323126');
INSERT INTO "trials" VALUES(5,4,1,'COMPLETE','2026-11-27 14:05:58.345375','2026-11-27 14:05:58.445898');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
